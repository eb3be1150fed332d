"""Timelines in the JSON format of Chrome's tracing, which ui.perfetto.dev and chrome://tracing open.

A rank is a process and an actor a thread; an arrow goes from every send of an activation to its receive. With several
runs the ranks of the second one count from 1,000, those of the third from 2,000.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bllpipe.results.timeline import RankSpans, Span, Timeline

APART = 1000  # process ids between two runs
Event = dict[str, Any]


def chrome_trace(timelines: Sequence[Timeline]) -> dict[str, Any]:
    """The whole file; times are microseconds since the first span of each run."""
    events = [
        event
        for index, timeline in enumerate(timelines)
        for event in _events(timeline, APART * index, timeline.name if len(timelines) > 1 else "")
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _events(timeline: Timeline, first_pid: int, name: str) -> Iterator[Event]:
    for rank in timeline.ranks:
        pid = first_pid + rank.rank
        yield from _names(rank, pid, name)
        threads = {actor: index for index, actor in enumerate(rank.actors)}
        for span in rank.spans:
            yield _slice(span, {"pid": pid, "tid": threads[span.actor]}, timeline.start)
    yield from _arrows(timeline, first_pid)


def _names(rank: RankSpans, pid: int, name: str) -> Iterator[Event]:
    title = f"{name} rank {rank.rank} ({rank.role})".strip()
    yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": title}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    for index, actor in enumerate(rank.actors):
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": index, "args": {"name": actor}}


def _slice(span: Span, place: Event, origin: int) -> Event:
    args = {"step": span.step, "batch": span.batch, "phase": span.phase, **({"edge": span.edge} if span.edge else {})}
    times = {"ts": (span.start - origin) / 1e3, "dur": (span.end - span.start) / 1e3}
    return {"ph": "X", "name": f"{span.kind} {span.step}", "cat": span.kind, **place, **times, "args": args}


def _arrows(timeline: Timeline, first_pid: int) -> Iterator[Event]:
    """From the start of every send to the end of its receive: a receive may begin long before there is anything."""
    threads = {(rank.rank, actor): index for rank in timeline.ranks for index, actor in enumerate(rank.actors)}
    for number, (send, receive) in enumerate(messages(timeline)):
        arrow = {"cat": "alpha", "name": send.edge, "id": f"{first_pid}-{number}"}
        for span, kind, time in ((send, {"ph": "s"}, send.start), (receive, {"ph": "f", "bp": "e"}, receive.end - 1)):
            place = {"pid": first_pid + span.rank, "tid": threads[span.rank, span.actor]}
            yield {**kind, **arrow, **place, "ts": (max(time, span.start) - timeline.start) / 1e3}


def messages(timeline: Timeline) -> list[tuple[Span, Span]]:
    """The send and the receive of every activation of which both are there."""
    ends: dict[tuple[Any, ...], dict[str, Span]] = {}
    for span in (span for rank in timeline.ranks for span in rank.spans):
        if span.edge.startswith("alpha ") and span.kind in ("send", "receive"):
            ends.setdefault((span.edge, span.phase, span.step, span.batch), {})[span.kind] = span
    return [(pair["send"], pair["receive"]) for pair in ends.values() if len(pair) == 2]
