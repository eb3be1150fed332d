"""The Prometheus metrics of a rank: name, documentation and the function that reads the value. docs/monitoring.md has
the same tables.

Values are in base units, which the names end with. Counters, whose names end with ``_total``, start at 0 with the
process, so that ``rate()`` is correct across restarts; gauges describe the run. The labels run, rank and role are added
by the service discovery, or in the text file.

An actor is a block (or stage, or replica), or the feedback loop of one block. The training thread changes the numbers
while they are read; a reading uses each of them by itself, and never reads a tensor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bllpipe.training.metrics_logger import MetricMeans
from bllpipe.training.timing import Metered
from bllpipe.training.worker import Actor, Worker
from bllpipe.utils.process import gpu_bytes, resident_bytes

SETTINGS = ("method", "engine", "model", "data")
VERSIONS = ("version", "torch", "python")
# Values of the metric's own labels, and its value. A metric without a value (yet) has no sample.
Sample = tuple[tuple[str, ...], float]


@dataclass(frozen=True)
class Source:
    """A rank of a run, from which all metrics are read.

    ``run_name`` is the name of the run directory; ``attempt`` differs for every start of the run. This process trains
    from step ``start`` to ``last_step``, with a checkpoint every ``save_every`` steps (None: never). It resumed from a
    checkpoint that was written at ``resumed_from``. ``settings`` and ``versions`` are labels: no paths.
    """

    worker: Worker
    run_name: str
    attempt: str
    restarts: int
    start: int
    last_step: int
    save_every: int | None
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    resumed_from: float | None = None
    began: float = field(default_factory=time.time)

    @property
    def labels(self) -> dict[str, str]:
        """The labels that identify this rank."""
        return {"run": self.run_name, "rank": str(self.worker.rank), "role": self.worker.role}

    @property
    def path(self) -> str:
        """The URL path of the metrics of this start of the run."""
        return f"/metrics/{self.attempt}"


@dataclass(frozen=True)
class Reading:
    """Reads the current samples of a metric, which its ``labels`` distinguish."""

    labels: tuple[str, ...]
    samples: Callable[[Source], Iterator[Sample]]


@dataclass(frozen=True)
class MetricDef:
    name: str
    doc: str
    reading: Reading

    @property
    def kind(self) -> Literal["counter", "gauge"]:
        return "counter" if self.name.endswith("_total") else "gauge"


def of_rank(read: Callable[[Source], float | None]) -> Reading:
    """A single sample without labels."""

    def samples(source: Source) -> Iterator[Sample]:
        value = read(source)
        if value is not None:
            yield (), value

    return Reading((), samples)


def of_actors(read: Callable[[Source, Actor], float | None]) -> Reading:
    """A sample per actor."""

    def samples(source: Source) -> Iterator[Sample]:
        for actor in source.worker.actors:
            value = read(source, actor)
            if value is not None:
                yield (actor.name,), value

    return Reading(("actor",), samples)


def of_edges(read: Callable[[Actor, Metered], float | None]) -> Reading:
    """A sample per edge of every actor."""

    def samples(source: Source) -> Iterator[Sample]:
        for actor in source.worker.actors:
            for port in actor.stopwatch.ports:
                value = read(actor, port)
                if value is not None:
                    yield (actor.name, port.meter.edge), value

    return Reading(("actor", "edge"), samples)


def of_phases(read: Callable[[MetricMeans], Mapping[tuple[str, ...], float]], *labels: str) -> Reading:
    """Samples of the last line of metrics.jsonl and of the last test of every actor that has a loss. The keys of the
    mapping are the values of ``labels``."""

    def samples(source: Source) -> Iterator[Sample]:
        for actor in source.worker.actors:
            phases = {"train": actor.metrics.trained, "test": actor.metrics.tested}
            for phase, means in phases.items():
                for values, value in (read(means) if means else {}).items():
                    yield (actor.name, phase, *values), value

    return Reading(("actor", "phase", *labels), samples)


def of_lines(read: Callable[[MetricMeans], float | None]) -> Reading:
    """A sample of the last line of metrics.jsonl of every actor that has a loss."""
    return of_actors(lambda source, actor: read(actor.metrics.trained) if actor.metrics.trained else None)


def constant(labels: tuple[str, ...], read: Callable[[Source], Mapping[str, str]]) -> Reading:
    """The value 1; the labels hold the information."""
    return Reading(labels, lambda source: iter([(tuple(read(source).values()), 1.0)]))


def steps_of_run(source: Source, actor: Actor) -> float:
    """Training steps of the run that the actor has done, in this process and in those before it."""
    return max(source.start, actor.entry.step if actor.entry else 0)


def last_progress(source: Source, actor: Actor) -> float:
    """When the actor began its current round."""
    return time.time() - (time.perf_counter() - actor.entered) if actor.entered else source.began


def phase_seconds(source: Source) -> Iterator[Sample]:
    """Seconds of every actor in training rounds and in test rounds."""
    for actor in source.worker.actors:
        yield (actor.name, "train"), actor.stopwatch.in_rounds
        yield (actor.name, "evaluate"), actor.stopwatch.in_tests


def queued(actor: Actor, port: Metered) -> float | None:
    """Messages queued at this end of an edge; None over NCCL, whose queue has no readable length."""
    return getattr(port, "queued", None)


def sent(actor: Actor, port: Metered) -> float | None:
    """Bytes sent in training; None for an edge over which the actor only receives."""
    number = actor.stopwatch.sent.get(port.meter.edge, 0)
    return number if number or hasattr(port, "send") else None


def waiting_now(actor: Actor, port: Metered) -> float:
    """Seconds for which the actor has been waiting at this edge; 0 if it is not waiting."""
    meter = port.meter
    return max(0.0, time.perf_counter() - meter.began) if meter.is_waiting else 0.0


SECTIONS = {
    "Progress": (
        MetricDef("bllpipe_step", "Training steps of the run that are done.", of_actors(steps_of_run)),
        MetricDef("bllpipe_planned_steps", "Training steps at which the run ends.", of_rank(lambda s: s.last_step)),
        MetricDef(
            "bllpipe_epoch",
            "Epoch of the round under way, from 0.",
            of_actors(lambda s, actor: actor.entry.epoch if actor.entry else None),
        ),
        MetricDef(
            "bllpipe_steps_total",
            "Training steps that this process has done.",
            of_actors(lambda s, actor: steps_of_run(s, actor) - s.start),
        ),
        MetricDef(
            "bllpipe_images_total",
            "Images that this process has trained on.",
            of_actors(lambda s, actor: actor.stopwatch.training.images),
        ),
        MetricDef(
            "bllpipe_last_progress_timestamp_seconds",
            "When the actor began the step, test batch or checkpoint that it is at.",
            of_actors(last_progress),
        ),
        MetricDef("bllpipe_start_timestamp_seconds", "When this process began to train.", of_rank(lambda s: s.began)),
        MetricDef(
            "bllpipe_restarts_total", "How often the launcher has restarted the ranks.", of_rank(lambda s: s.restarts)
        ),
    ),
    "Time and messages": (
        MetricDef(
            "bllpipe_phase_seconds_total",
            "Seconds in the rounds of the training (train) and of tests (evaluate), waiting for messages included.",
            Reading(("actor", "phase"), phase_seconds),
        ),
        MetricDef(
            "bllpipe_waiting_seconds_total",
            "Seconds of the training in which the actor waited at the edge; the rest of its rounds it computed.",
            of_edges(lambda actor, port: actor.stopwatch.waiting.get(port.meter.edge, 0.0)),
        ),
        MetricDef(
            "bllpipe_current_wait_seconds",
            "For how long the actor has been waiting at the edge now; 0 if it is not.",
            of_edges(waiting_now),
        ),
        MetricDef(
            "bllpipe_queued_messages",
            "Messages at this end of the edge: come and not taken yet, or sent and not gone yet. Unknown over NCCL.",
            of_edges(queued),
        ),
        MetricDef("bllpipe_sent_bytes_total", "Bytes sent over the edge in training.", of_edges(sent)),
        MetricDef(
            "bllpipe_cpu_seconds_total",
            "Processor time of this process, all threads together.",
            of_rank(lambda s: time.process_time()),
        ),
    ),
    "Learning": (
        MetricDef(
            "bllpipe_loss",
            "Terms of the block's loss; their sum is minimised. Mean since the line before, or over the last test.",
            of_phases(lambda means: {(term,): value for term, value in means.terms.items()}, "term"),
        ),
        MetricDef(
            "bllpipe_accuracy_ratio",
            "Share of the images that the block's own head gets right, over the same images.",
            of_phases(lambda means: {(): means.accuracy}),
        ),
        MetricDef(
            "bllpipe_alignment_ratio",
            "Cosine between alpha and beta, from -1 to 1; of the last batch before a line, or over the last test.",
            of_phases(lambda means: {(): means.diagnostics["alignment"]} if "alignment" in means.diagnostics else {}),
        ),
        MetricDef(
            "bllpipe_gradient_norm",
            "Norm of the block's gradients in the last step before a line, before clipping.",
            of_lines(lambda means: means.diagnostics.get("gradient_norm")),
        ),
        MetricDef(
            "bllpipe_learning_rate", "Learning rate of the last step before a line.", of_lines(lambda means: means.lr)
        ),
    ),
    "Checkpoints": (
        MetricDef(
            "bllpipe_checkpoint_step",
            "Step of the last checkpoint: the one of which this rank has written its share, or from which it resumed.",
            of_rank(lambda s: max(s.start, s.worker.saves.step)),
        ),
        MetricDef(
            "bllpipe_checkpoint_interval_steps",
            "Steps between checkpoints; 0: only at the end; missing: never.",
            of_rank(lambda s: s.save_every),
        ),
        MetricDef(
            "bllpipe_checkpoint_timestamp_seconds",
            "When that checkpoint was written; missing before the first one.",
            of_rank(lambda s: s.worker.saves.written_at or s.resumed_from),
        ),
        MetricDef(
            "bllpipe_checkpoint_duration_seconds",
            "How long this rank took to write its share of the last checkpoint.",
            of_rank(lambda s: s.worker.saves.last_seconds if s.worker.saves.number else None),
        ),
        MetricDef(
            "bllpipe_checkpoint_seconds_total",
            "Seconds in which this rank wrote checkpoints.",
            of_rank(lambda s: s.worker.saves.seconds),
        ),
        MetricDef(
            "bllpipe_checkpoints_total",
            "Checkpoints of which this process has written its share.",
            of_rank(lambda s: s.worker.saves.number),
        ),
        MetricDef(
            "bllpipe_checkpoint_failures_total",
            "Checkpoints of which this process could not write its share.",
            of_rank(lambda s: s.worker.saves.failures),
        ),
    ),
    "Memory and versions": (
        MetricDef(
            "bllpipe_resident_memory_bytes", "Resident memory of this process.", of_rank(lambda s: resident_bytes())
        ),
        MetricDef(
            "bllpipe_gpu_memory_bytes",
            "GPU memory of the process's tensors; 0 without a GPU.",
            of_rank(lambda s: gpu_bytes()),
        ),
        MetricDef(
            "bllpipe_gpu_memory_peak_bytes", "The most that it ever was.", of_rank(lambda s: gpu_bytes(peak=True))
        ),
        MetricDef("bllpipe_run_info", "1; what is trained, and how.", constant(SETTINGS, lambda s: s.settings)),
        MetricDef("bllpipe_build_info", "1; versions.", constant(VERSIONS, lambda s: s.versions)),
    ),
}
METRICS = tuple(metric for section in SECTIONS.values() for metric in section)


def file_time(path: Path) -> float | None:
    """Modification time of ``path`` in seconds since the epoch; None if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None
