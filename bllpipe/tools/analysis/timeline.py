"""The spans of a run, read from all of its ranks and put on one clock, what they amount to, and the same for Perfetto.

In the JSON format of Chrome's tracing, which ui.perfetto.dev and chrome://tracing open, a rank is a process and an
actor a thread; an arrow goes from every send of an activation to its receive. With several runs the ranks of the second
one count from 1,000, those of the third from 2,000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bllpipe.errors import ConfigError
from bllpipe.training.tracing import VERSION
from bllpipe.utils.files import json_object

WAITING = ("receive", "send", "wait")  # kinds in which a rank computes nothing
Warn = Callable[[str], None]
APART = 1000  # process ids between two runs
Event = dict[str, Any]


@dataclass(frozen=True)
class TimelineSpan:
    """From ``start`` to ``end``, in nanoseconds of rank 0's clock, an actor of ``rank`` did ``kind``."""

    rank: int
    actor: str
    kind: str
    phase: str
    step: int
    batch: int
    edge: str
    start: int
    end: int


@dataclass(frozen=True)
class RankSpans:
    """The spans of one rank, by start; times are off by ``uncertainty`` nanoseconds at most. ``others`` belong to
    steps that were cut off, and count for nothing."""

    rank: int
    role: str
    uncertainty: int
    spans: tuple[TimelineSpan, ...]
    others: tuple[TimelineSpan, ...] = ()

    @property
    def actors(self) -> list[str]:
        """In the order of their names: lane 2 before lane 10."""
        return sorted({span.actor for span in self.spans}, key=lambda name: (len(name), name))

    @property
    def start(self) -> int:
        return self.spans[0].start

    @property
    def end(self) -> int:
        return max(span.end for span in self.spans)

    @property
    def busy(self) -> float:
        """Share of the time from its first span to its last in which any of its actors did not wait."""
        computing, reached = 0, self.start
        for span in self.spans:
            if span.kind not in WAITING:
                computing += max(0, span.end - max(span.start, reached))
                reached = max(reached, span.end)
        return computing / max(1, self.end - self.start)


@dataclass(frozen=True)
class Timeline:
    """The traced steps of one run; every rank went through them in its own time."""

    name: str
    ranks: tuple[RankSpans, ...]

    @property
    def start(self) -> int:
        return min(rank.start for rank in self.ranks)

    @property
    def end(self) -> int:
        return max(rank.end for rank in self.ranks)

    @property
    def steps(self) -> list[int]:
        return sorted({span.step for rank in self.ranks for span in rank.spans})

    @property
    def blocks(self) -> list[RankSpans]:
        """The ranks that hold a part of the network."""
        return [rank for rank in self.ranks if not rank.role.startswith("feedback")] or list(self.ranks)

    @property
    def steps_per_second(self) -> float:
        """Training steps a second, of the block that took longest for its steps."""
        rates = []
        for rank in self.blocks:
            steps = {span.step for span in rank.spans if span.phase == "train"}
            rates.append(1e9 * len(steps) / max(1, rank.end - rank.start))
        return min(rates)

    @property
    def bubbles(self) -> float:
        """Share of the blocks' time in which they computed nothing."""
        return 1 - sum(rank.busy for rank in self.blocks) / len(self.blocks)

    def cut(self, first: int | None, end: int | None) -> Timeline:
        """The steps from ``first`` to the one before ``end``. Raises ConfigError when there are none."""
        low, high = -1 if first is None else first, float("inf") if end is None else end
        kept = []
        for rank in self.ranks:
            inside = tuple(span for span in rank.spans if low <= span.step < high)
            outside = tuple(span for span in rank.spans if not low <= span.step < high)
            if inside:
                kept.append(replace(rank, spans=inside, others=(*rank.others, *outside)))
        if not kept:
            raise ConfigError(
                f"{self.name} has spans of the steps {self.steps[0]} to {self.steps[-1]}, none of them in --steps "
                f"{'' if first is None else first}:{'' if end is None else end}; take --steps "
                f"{self.steps[0]}:{self.steps[-1] + 1}"
            )
        return Timeline(self.name, tuple(kept))


def read_timeline(run: Path, warn: Warn) -> Timeline:
    """The spans in the directory of a run; ``warn`` is called for damaged lines, which are left out.

    Raises ConfigError when there are none, or when a file has no header.
    """
    files = sorted((run / "spans").glob("rank-*.jsonl"), key=lambda file: (len(file.name), file.name))
    ranks = [_read_rank(file, warn) for file in files]
    traced = tuple(sorted((rank for rank in ranks if rank.spans), key=lambda rank: rank.rank))
    if not traced:
        raise ConfigError(
            f"{run} holds no spans, because its run traced no step; start a run with --set trace.num_steps=20, and "
            f"with a trace.first_step before its last step"
        )
    return Timeline(run.resolve().name, traced)


def parse_steps(text: str) -> tuple[int | None, int | None]:
    """``10:16`` as (10, 16), ``10:`` as (10, None). Raises ConfigError for anything else."""
    first, colon, end = text.partition(":")
    if not colon or not all(part == "" or part.isdecimal() for part in (first, end)):
        raise ConfigError(f"--steps is {text!r}; expected the first step and the one behind the last, such as 10:16")
    return int(first) if first else None, int(end) if end else None


def _read_rank(file: Path, warn: Warn) -> RankSpans:
    first, *rest = file.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    header = json_object(first)
    numbers = [header.get(name, 0) for name in ("rank", "clock_offset_ns", "clock_uncertainty_ns")]
    if header.get("version") != VERSION or "rank" not in header or not all(isinstance(each, int) for each in numbers):
        raise ConfigError(
            f"{file} does not begin with a header of version {VERSION}, so it holds no spans that can be read; remove "
            f"it, or trace the run again"
        )
    found = [_span(json_object(line), header) for line in rest]
    if damaged := found.count(None):
        warn(f"{file}: damaged lines, left out: {damaged} of {len(found)}")
    spans = sorted((span for span in found if span is not None), key=lambda span: (span.start, span.end))
    return RankSpans(header["rank"], str(header.get("role")), header.get("clock_uncertainty_ns", 0), tuple(spans))


def _span(record: dict[str, Any], header: dict[str, Any]) -> TimelineSpan | None:
    """None for garbage."""
    offset = header.get("clock_offset_ns", 0)
    try:
        step, batch, start, end = (int(record[name]) for name in ("step", "batch", "start", "end"))
        actor, kind, phase = (str(record[name]) for name in ("actor", "kind", "phase"))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if end < start:
        return None
    edge = str(record.get("edge", ""))
    return TimelineSpan(header["rank"], actor, kind, phase, step, batch, edge, start + offset, end + offset)


def summary(timeline: Timeline) -> str:
    """Steps, throughput and bubbles, in a line."""
    first, last = timeline.steps[0], timeline.steps[-1]
    steps = f"step {first}" if first == last else f"steps {first} to {last}"
    rate, bubbles = timeline.steps_per_second, 100 * timeline.bubbles
    error = max(rank.uncertainty for rank in timeline.ranks)
    clocks = f"; clocks aligned to {error / 1e6:.3f} ms" if error else ""
    return f"{steps}, {rate:.4g} steps/s, bubbles {bubbles:.1f} % of the blocks' time{clocks}"


def busy(timeline: Timeline) -> str:
    """The busy share of every rank, in a line."""
    return "busy: " + ", ".join(f"rank {rank.rank} {100 * rank.busy:.1f} %" for rank in timeline.ranks)


def chrome_trace(timelines: Sequence[Timeline]) -> dict[str, Any]:
    """The whole file; times are microseconds since the first span of each run."""
    events: list[Event] = []
    for index, timeline in enumerate(timelines):
        events += _events(timeline, APART * index, f"{timeline.name} " if len(timelines) > 1 else "")
        events += _arrows(timeline, APART * index)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _events(timeline: Timeline, first_pid: int, prefix: str) -> Iterator[Event]:
    for rank in timeline.ranks:
        pid = first_pid + rank.rank
        name = f"{prefix}rank {rank.rank} ({rank.role})"
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
        threads = {actor: index for index, actor in enumerate(rank.actors)}
        for actor, tid in threads.items():
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": actor}}
        for span in rank.spans:
            edge = {"edge": span.edge} if span.edge else {}
            yield {
                "ph": "X",
                "name": f"{span.kind} {span.step}",
                "cat": span.kind,
                "pid": pid,
                "tid": threads[span.actor],
                "ts": (span.start - timeline.start) / 1e3,
                "dur": (span.end - span.start) / 1e3,
                "args": {"step": span.step, "batch": span.batch, "phase": span.phase, **edge},
            }


def _arrows(timeline: Timeline, first_pid: int) -> Iterator[Event]:
    """From the start of every send to the end of its receive: a receive may begin long before there is anything."""
    threads = {(rank.rank, actor): index for rank in timeline.ranks for index, actor in enumerate(rank.actors)}
    for number, (send, receive) in enumerate(messages(timeline)):
        arrow = {"cat": "alpha", "name": send.edge, "id": f"{first_pid}-{number}"}
        for span, kind, time in ((send, {"ph": "s"}, send.start), (receive, {"ph": "f", "bp": "e"}, receive.end - 1)):
            place = {"pid": first_pid + span.rank, "tid": threads[span.rank, span.actor]}
            yield {**kind, **arrow, **place, "ts": (max(time, span.start) - timeline.start) / 1e3}


def messages(timeline: Timeline) -> list[tuple[TimelineSpan, TimelineSpan]]:
    """The send and the receive of every activation of which both are there."""
    ends: dict[tuple[Any, ...], dict[str, TimelineSpan]] = {}
    for span in (span for rank in timeline.ranks for span in rank.spans):
        if span.edge.startswith("alpha ") and span.kind in ("send", "receive"):
            ends.setdefault((span.edge, span.phase, span.step, span.batch), {})[span.kind] = span
    return [(pair["send"], pair["receive"]) for pair in ends.values() if len(pair) == 2]
