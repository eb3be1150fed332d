"""Spans: what every actor did and when, kept in memory during the run and written to spans/rank-N.jsonl afterwards.

With ``trace.num_steps`` the methods of actors are wrapped (training/instrument.py); without it nothing is traced. Times
are those of the host: work queued on a GPU ends later than its span, and appears where the host waits for it.

A file has a header, and a line for each span with start and end in nanoseconds of this rank's own clock; the header's
``clock_offset_ns`` added to them gives those of rank 0. ``step`` is a training step; tests and checkpoints have that
of the step before them, and another ``phase``.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bllpipe.messages import Round, Store

if TYPE_CHECKING:
    from bllpipe.training.run_directory import RunDirectory


VERSION = 1
TRIPS = 16  # round trips to rank 0, of which the shortest is used


class Span(NamedTuple):
    """From ``start`` to ``end`` (time.perf_counter_ns) an actor did ``kind`` in the round ``entry``."""

    kind: str
    edge: str
    entry: Round
    start: int
    end: int


class Track:
    """The spans of one actor in the training steps of ``window``. Only the actor's own thread adds to it."""

    def __init__(self, actor: str, window: range) -> None:
        self.actor, self.window = actor, window
        self.spans: list[Span] = []
        self.entry: Round | None = None
        self.is_open = False  # spans do not nest: inside a span nothing else is recorded
        self.ended = False
        self.on_end: Callable[[], None] = lambda: None

    def enter(self, entry: Round) -> None:
        """Sets the round of the next spans. The first round after the window ends the track."""
        self.entry = entry
        if not self.ended and step_of(entry) >= self.window.stop:
            self.ended = True
            self.on_end()


class _Recording:
    """A span that has not ended."""

    __slots__ = ("_edge", "_entry", "_kind", "_start", "_track")

    def __init__(self, track: Track, kind: str, entry: Round, edge: str) -> None:
        self._track, self._kind, self._entry, self._edge = track, kind, entry, edge

    def __enter__(self) -> None:
        self._track.is_open = True
        self._start = time.perf_counter_ns()

    def __exit__(self, *error: object) -> None:
        end = time.perf_counter_ns()
        self._track.spans.append(Span(self._kind, self._edge, self._entry, self._start, end))
        self._track.is_open = False


NOTHING = nullcontext()


def record(
    track: Track | None, kind: str, step: int | None = None, batch: int = 0, edge: str = ""
) -> AbstractContextManager[None]:
    """Records what happens inside of ``with record(actor.track, "forward", step, microbatch):``.

    For engines with a schedule of their own: ``kind`` is any word (timelines know forward, backward, update, send,
    receive, wait and some more; the last three count as waiting), ``step`` the training step, by default that of the
    round under way, and ``batch`` the microbatch. Without a track, outside of the traced steps and inside of another
    span it does nothing. Call it in the actor's own thread.
    """
    if track is None or track.is_open:
        return NOTHING
    entry = track.entry if step is None else Round("train", step, batch=batch)
    if entry is None or step_of(entry) not in track.window:
        return NOTHING
    return _Recording(track, kind, entry, edge)


def step_of(entry: Round) -> int:
    """The training step that a round is, or follows."""
    return entry.step if entry.phase == "train" else entry.step - 1


class SpanFile:
    """The spans of one rank, written once: after the traced steps of all of its actors, or at the end of the run."""

    def __init__(self, directory: RunDirectory, header: Mapping[str, Any], tracks: Sequence[Track]) -> None:
        self._directory, self._name = directory, f"rank-{header['rank']}.jsonl"
        self._header, self._tracks = header, tracks
        self._lock, self._written = threading.Lock(), False
        for track in tracks:
            track.on_end = self._track_ended

    def write(self) -> None:
        """Writes the file once, and not without spans: a resumed run keeps the file of an earlier start."""
        with self._lock:
            spans = [(track.actor, span) for track in self._tracks for span in track.spans]
            if self._written or not spans:
                return
            self._written = True
        header = {"version": VERSION, "unit": "ns", "pid": os.getpid(), **self._header}
        lines = [header]
        for actor, span in sorted(spans, key=lambda pair: pair[1].start):
            place = {"phase": span.entry.phase, "step": step_of(span.entry), "batch": span.entry.batch}
            times = {"start": span.start, "end": span.end, "actor": actor}
            lines.append({"kind": span.kind, **place, **times, **({"edge": span.edge} if span.edge else {})})
        self._directory.write_spans(self._name, "".join(json.dumps(line) + "\n" for line in lines))

    def _track_ended(self) -> None:
        if all(track.ended for track in self._tracks):
            self.write()


@dataclass(frozen=True)
class Clock:
    """The offset from this rank's time.perf_counter_ns to that of rank 0, and the bound of its error."""

    clock_offset_ns: int = 0
    clock_uncertainty_ns: int = 0


def machine_id() -> str:
    """An id of this machine since its boot, as all of its processes share one monotonic clock."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else platform.node()


def align_clock(
    store: Store, rank: int, world_size: int, machine: str, now: Callable[[], int] = time.perf_counter_ns
) -> Clock:
    """Measures the offset of this rank's clock to that of rank 0, once; all ranks call it at the same point.

    Ranks on the machine of rank 0 share its clock. A rank on another machine requests the time of rank 0 through the
    store in TRIPS round trips and uses the shortest one: the error is at most half of a round trip.
    """
    store.set(f"clock/machine/{rank}", machine)
    if rank == 0:
        for other in range(1, world_size):
            if store.get(f"clock/machine/{other}").decode() != machine:
                for trip in range(TRIPS):
                    store.get(f"clock/request/{other}/{trip}")
                    store.set(f"clock/answer/{other}/{trip}", str(now()))
        return Clock()
    if store.get("clock/machine/0").decode() == machine:
        return Clock()
    trips = [_ask_time(store, rank, trip, now) for trip in range(TRIPS)]
    return min(trips, key=lambda clock: clock.clock_uncertainty_ns)


def _ask_time(store: Store, rank: int, trip: int, now: Callable[[], int]) -> Clock:
    asked = now()
    store.set(f"clock/request/{rank}/{trip}", "now")
    told = int(store.get(f"clock/answer/{rank}/{trip}"))
    answered = now()
    return Clock(told - (asked + answered) // 2, (answered - asked + 1) // 2)
