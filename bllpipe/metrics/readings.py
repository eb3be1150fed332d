"""Reading a figure of a rank: one value for the rank, for each of its actors, or for each end of an edge that it has.

An actor is a block (or stage, or replica), or a lane of the feedback. Every function here only looks at numbers that
another thread changes meanwhile, one at a time; none looks at a tensor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from bllpipe.metrics.source import Source
from bllpipe.run.rank import Actor
from bllpipe.run.recorder import Means
from bllpipe.run.timing import Metered

# The values of a figure's own labels, and the value; figures that are not known (yet) are left out.
Sample = tuple[tuple[str, ...], float]
Reading = Callable[[Source], Iterator[Sample]]


def of_rank(read: Callable[[Source], float | None]) -> Reading:
    """One value, without labels."""

    def reading(source: Source) -> Iterator[Sample]:
        value = read(source)
        if value is not None:
            yield (), value

    return reading


def of_actors(read: Callable[[Source, Actor], float | None]) -> Reading:
    """A value for every actor, with the label actor."""

    def reading(source: Source) -> Iterator[Sample]:
        for actor in source.part.actors:
            value = read(source, actor)
            if value is not None:
                yield (actor.name,), value

    return reading


def of_edges(read: Callable[[Actor, Metered], float | None]) -> Reading:
    """A value for every edge of every actor, with the labels actor and edge."""

    def reading(source: Source) -> Iterator[Sample]:
        for actor in source.part.actors:
            for port in actor.stopwatch.ports:
                value = read(actor, port)
                if value is not None:
                    yield (actor.name, port.meter.edge), value

    return reading


def of_books(read: Callable[[Means], Mapping[str, float]]) -> Reading:
    """Values of the last line and of the last test of every actor that has losses, with the labels actor, phase and
    what the mapping is by."""

    def reading(source: Source) -> Iterator[Sample]:
        for actor in source.part.actors:
            books = {"train": actor.recorder.trained, "test": actor.recorder.tested}
            for phase, means in books.items():
                for name, value in (read(means) if means else {}).items():
                    yield (actor.name, phase, name), value

    return reading


def of_lines(read: Callable[[Means], float | None]) -> Reading:
    """A value of the last line of every actor that has losses, with the label actor."""
    return of_actors(lambda source, actor: read(actor.recorder.trained) if actor.recorder.trained else None)


def unnamed(reading: Reading) -> Reading:
    """The same without the last label, where there is nothing to tell apart."""
    return lambda source: ((labels[:-1], value) for labels, value in reading(source))


def phase_seconds(source: Source) -> Iterator[Sample]:
    """Seconds in the rounds of the training, and in those of tests, of every actor."""
    for actor in source.part.actors:
        yield (actor.name, "train"), actor.stopwatch.in_rounds
        yield (actor.name, "evaluate"), actor.stopwatch.in_tests


def constant(labels: Callable[[Source], Mapping[str, str]]) -> Reading:
    """1, with what is to be told in the labels."""
    return lambda source: iter([(tuple(labels(source).values()), 1.0)])


def steps_of_run(source: Source, actor: Actor) -> float:
    """Training steps of the run that the actor has done, in this process or before."""
    return max(source.start, actor.entry.step if actor.entry else 0)


def last_progress(source: Source, actor: Actor) -> float:
    """When the actor began the round it is in."""
    return time.time() - (time.perf_counter() - actor.entered) if actor.entered else source.began


def queued(actor: Actor, port: Metered) -> float | None:
    """Messages at this end of an edge; None where the wire cannot tell."""
    return getattr(port, "queued", None)


def sent(actor: Actor, port: Metered) -> float | None:
    """Bytes sent in training; None for an edge that only brings messages."""
    number = actor.stopwatch.sent.get(port.meter.edge, 0)
    return number if number or hasattr(port, "send") else None


def waiting_now(actor: Actor, port: Metered) -> float:
    """For how many seconds the actor has been waiting at this edge."""
    meter = port.meter
    return max(0.0, time.perf_counter() - meter.began) if meter.is_waiting else 0.0
