"""The worker of a rank: it runs the rounds of the schedule with its loops, records their metrics, and writes its shard
of every checkpoint.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bllpipe.checkpoint import CheckpointWriter
from bllpipe.checkpoint.replicas import ReplicaWriter
from bllpipe.messages import Round
from bllpipe.training.loops import Loop
from bllpipe.training.metrics_logger import MetricsLogger
from bllpipe.training.timing import Stopwatch
from bllpipe.training.tracing import SpanFile, Track, record
from bllpipe.utils.process import peak_memory_bytes
from bllpipe.utils.tensors import part_digest, require_finite

RECEIVED = ("ahead.", "feedback.")  # tensors that a feedback rank computes from messages of blocks


class RoundError(Exception):
    """An actor failed in the round ``entry``, with this error's cause."""

    def __init__(self, entry: Round) -> None:
        super().__init__(str(entry))
        self.entry = entry


@dataclass
class Actor:
    """A loop with its stopwatch and its metrics logger, and with a track of its spans if it is traced."""

    loop: Loop
    stopwatch: Stopwatch
    metrics: MetricsLogger
    track: Track | None = None
    entry: Round | None = None
    entered: float = 0.0

    @property
    def name(self) -> str:
        return str(self.metrics.place["actor"])

    def run_round(self, entry: Round) -> None:
        """One round, timed and recorded."""
        self.entry, self.entered = entry, time.perf_counter()
        if self.track is not None:
            self.track.enter(entry)
        self.stopwatch.begin()
        outcome = self.loop.run(entry)
        self.stopwatch.end(entry)
        self.metrics.record(entry, outcome)


@dataclass
class CheckpointStats:
    """Counts of this process. ``written_at`` is a time since the epoch, ``last_seconds`` that of the last shard."""

    number: int = 0
    failures: int = 0
    step: int = 0
    written_at: float | None = None
    last_seconds: float = 0.0
    seconds: float = 0.0

    @contextmanager
    def writing(self, step: int) -> Iterator[None]:
        """A context that writes the shard of ``step``: counts it, or the error that it raises."""
        began = time.perf_counter()
        try:
            yield
        except BaseException:
            self.failures += 1
            raise
        finally:
            self.last_seconds = time.perf_counter() - began
            self.seconds += self.last_seconds
        self.number, self.step, self.written_at = self.number + 1, step, time.time()


@dataclass
class Worker:
    """All actors of one rank: one of a block, or one for every lane of the feedback."""

    rank: int
    role: str
    actors: list[Actor]
    checkpoints: CheckpointWriter | ReplicaWriter
    metadata: Mapping[str, Any]
    spans: SpanFile | None = None
    part: int | None = None  # of checkpoints; None: the number of the rank
    all_weights: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda own: own  # that the digest covers
    _arrived: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _number_arrived: dict[int, int] = field(default_factory=dict)
    _cpu_before: float = field(default_factory=time.process_time)

    last_saved: int | None = None
    saves: CheckpointStats = field(default_factory=CheckpointStats)

    def run_round(self, actor: Actor, entry: Round) -> None:
        """One round of one actor, with its checkpoint. Raises RoundError, which names the round, from any error."""
        try:
            actor.run_round(entry)
            if entry.phase == "save":
                with record(actor.track, "save"):
                    self._save(entry, {**actor.loop.state(), **actor.metrics.state()})
            if entry.phase == "end":
                self._require_finite(actor.loop.state(), f"end of the run, after step {entry.step}")
        except Exception as error:
            raise RoundError(entry) from error

    def _save(self, entry: Round, state: Mapping[str, Tensor]) -> None:
        """The last actor to reach this checkpoint writes the shard of the whole rank."""
        only = len(self.actors) == 1
        with self._lock:
            tensors = self._arrived.setdefault(entry.step, {})
            # lanes train on while others have not reached this step: keep copies of their state at this step
            tensors.update(state if only else {name: value.detach().clone() for name, value in state.items()})
            self._number_arrived[entry.step] = self._number_arrived.get(entry.step, 0) + 1
            complete = self._number_arrived[entry.step] == len(self.actors)
        if not complete:
            return
        tensors = self._arrived.pop(entry.step)
        place = {"rank": self.rank, "role": self.role}  # in ``metadata`` there may be those of the part
        metadata = {**place, "step": entry.step, "epoch": entry.epoch, "tested": entry.tested, **self.metadata}
        with self.saves.writing(entry.step):
            self._require_finite(tensors, f"checkpoint of step {entry.step}")
            self.checkpoints.write(entry.step, self.rank if self.part is None else self.part, tensors, metadata)
        self.last_saved = entry.step

    def _require_finite(self, tensors: Mapping[str, Tensor], where: str) -> None:
        received = [name for name in tensors if name.startswith(RECEIVED)]
        require_finite(tensors, self.rank, self.role, where, received)

    def report(self) -> dict[str, Any]:
        """This rank's part of summary.json, at the end of the run."""
        if self.spans is not None:
            self.spans.write()
        watches = [actor.stopwatch for actor in self.actors]
        training = max(watch.training.seconds for watch in watches)
        weights = {name: value for actor in self.actors for name, value in actor.loop.weights().items()}
        return {
            "role": self.role,
            "busy": sum(watch.computing for watch in watches) / training if training else 0.0,
            "waiting": {edge: seconds for watch in watches for edge, seconds in watch.waiting.items()},
            "sent_bytes": {edge: number for watch in watches for edge, number in watch.sent.items() if number},
            "cpu_seconds": time.process_time() - self._cpu_before,
            "images_per_second": min(watch.steady.rate for watch in watches),
            "accuracy": self.actors[0].metrics.accuracy,
            "ensemble_accuracy": self.actors[0].metrics.ensemble_accuracy,
            "parameters": sum(value.numel() for value in weights.values() if value.is_floating_point()),
            "peak_memory_bytes": peak_memory_bytes(),
            "digest": part_digest(self.all_weights(weights)),
        }
