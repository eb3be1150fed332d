"""The wavefront as one graph: a tick in which every column trains is recorded once, on all streams, and then launched.

  images, labels, rates     copied to where they stay, on the stream of the ticks
  one launch                fork -+- lane 3, block 3 -+- join     what each stream does, and what it waits for inside
                                  +- ...              |           of the tick, is in the graph
                                  +- lane 0, block 0 -+
  metrics                   totals of the losses, rounds, rings: of all columns, on the stream of the ticks

A graph is right for the slots that it was recorded with, so there is one for every state of the rings that comes: two
at a lag of 1, and two more when tests have taken an odd number of slots. All other ticks (the ramps, tests,
checkpoints, lines of metrics, traced steps) are queued round by round, each block's pieces as graphs of their own. The
two ways meet at events: what is queued either way is behind everything that was queued the other way. An event that is
recorded in a graph means nothing outside of it, and no graph can wait for one outside; so rings forget theirs on the
way in and out.

While a graph replaces their arithmetic, loops run as ever: they count their messages and their time, and what computes
in them gives what the graph has computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bllpipe.distributed.cuda_streams import PLACEHOLDER, RingWires, Stream
from bllpipe.engines.job import Job
from bllpipe.errors import ConfigError
from bllpipe.learn.block import Outcome
from bllpipe.learn.cuda_graphs import ORDINARY_STEPS, Graphs, as_part_of_a_graph
from bllpipe.messages import Alpha, Receiver, Round
from bllpipe.training.loops import BlockLoop, FeedbackLoop, Loop
from bllpipe.training.timing import Metered
from bllpipe.training.worker import Actor, Worker

Tick = Sequence[tuple[int, Round]]


@dataclass(frozen=True, eq=False)
class StreamActor:
    """An actor, the part that it belongs to, and the stream that it works on."""

    part: Worker
    actor: Actor
    stream: Stream

    def run_round(self, entry: Round) -> None:
        """Queues one round of the actor."""
        with self.stream.at_work():
            self.part.run_round(self.actor, entry)

    def wait_for(self, others: Sequence[StreamActor]) -> None:
        """What is queued from now on needs what is queued on their streams now."""
        for other in others:
            self.stream.wait(other.stream.record())


class Columns(NamedTuple):
    """Block k and lane k are column k."""

    blocks: Sequence[StreamActor]
    lanes: Sequence[StreamActor]


class Recorded(NamedTuple):
    """What launches a tick, and where its outcomes lie, in the order of the tick."""

    launch: Callable[[], None]
    outcomes: list[Outcome]


class WavefrontGraph:
    """Carries out the ticks that are one graph."""

    def __init__(self, job: Job, columns: Columns, wires: RingWires, graphs: Graphs) -> None:
        self._columns, self._wires, self._graphs = columns, wires, graphs
        self._stream = wires.streams.open("ticks")
        self._recorded: dict[object, Recorded] = {}
        self._is_under_way = False
        self._steady = CapturePolicy(job, len(columns.blocks))
        self._labels = [StaticLabels.of(lane.actor.loop) for lane in columns.lanes]
        self._images = StaticImages.of(columns.blocks[0].actor.loop)

    def run_round(self, tick: Tick) -> bool:
        """Queues the whole tick if it can be one graph; else nothing, and what is queued next is behind all ticks."""
        if not self._steady.is_so(tick):
            self._leave()
            return False
        self._enter()
        with self._stream.at_work():
            rates = self._fetch(tick)
            recorded = self._recorded.get(self._wires.positions)
            if recorded is None:
                self._record(tick, rates)
            else:
                recorded.launch()
                self._update_metrics(
                    tick, [replace(each, lr=lr) for each, lr in zip(recorded.outcomes, rates, strict=True)]
                )
        return True

    def _enter(self) -> None:
        if not self._is_under_way:
            for place in self._all_actors():
                self._stream.wait(place.stream.record())
        self._is_under_way = True

    def _leave(self) -> None:
        if self._is_under_way:
            done = self._stream.record()
            for place in self._all_actors():
                place.stream.wait(done)
        self._is_under_way = False

    def _all_actors(self) -> list[StreamActor]:
        return [*self._columns.lanes, *self._columns.blocks]

    def _fetch(self, tick: Tick) -> list[float]:
        """Puts what comes from outside where the graph finds it; the learning rates."""
        self._images.fetch()
        for labels in self._labels:
            labels.fetch()
        return [self._block(number).learner.set_rate(entry.step) for number, entry in tick]

    def _block(self, number: int) -> Any:
        return self._columns.blocks[number].actor.loop.block  # type: ignore[attr-defined]  # its loop is a BlockLoop

    def _record(self, tick: Tick, rates: Sequence[float]) -> None:
        """Records the tick and launches it for the first time."""
        positions = self._wires.positions
        try:
            launch, outcomes = self._graphs.record(lambda: self._queue(tick, rates))
        except RuntimeError as error:
            raise ConfigError(
                f"gpu.capture is true, but a tick of all {len(tick)} blocks could not be captured as one graph: "
                f"{_first(error)}; use --set gpu.capture=blocks"
            ) from error
        launch()
        self._wires.rebase_events(self._stream.record())
        self._recorded[positions] = Recorded(launch, outcomes)
        for (number, entry), outcome in zip(tick, outcomes, strict=True):
            for place, result in ((self._columns.lanes[number], None), (self._columns.blocks[number], outcome)):
                with substituted(place.actor, "loop", ReplayedLoop.of(place.actor, result)):
                    place.part.run_round(place.actor, entry)

    def _queue(self, tick: Tick, rates: Sequence[float]) -> list[Outcome]:
        """The tick itself: all streams begin behind the one that records, and end in front of it."""
        recording = self._wires.streams.current()
        start = recording.record()
        for place in self._all_actors():
            place.stream.wait(start)
        self._wires.rebase_events(start)
        outcomes = [self._queue_column(number, entry, lr) for (number, entry), lr in zip(tick, rates, strict=True)]
        for place in self._all_actors():
            recording.wait(place.stream.record())
        return outcomes

    def _queue_column(self, number: int, entry: Round, lr: float) -> Outcome:
        lane, block = self._columns.lanes[number], self._columns.blocks[number]
        for place in (lane, block):
            place.actor.stopwatch.begin()
        with lane.stream.at_work():
            lane.actor.loop.run(entry)
        with block.stream.at_work(), as_part_of_a_graph(self._block(number), lr):
            outcome = block.actor.loop.run(entry)
        assert outcome is not None, "a block's training step has an outcome"
        return outcome

    def _update_metrics(self, tick: Tick, outcomes: Sequence[Outcome]) -> None:
        """Every loop runs, with its ports and its books, but without its arithmetic."""
        with self._wires.moved_by_graph(self._stream.record()):
            for (number, entry), outcome in zip(tick, outcomes, strict=True):
                lane, block = self._columns.lanes[number], self._columns.blocks[number]
                with substituted(lane.actor.loop, "feedback", ReplayedFeedback()):
                    lane.part.run_round(lane.actor, entry)
                with substituted(block.actor.loop, "block", ReplayedBlock(outcome)):
                    block.part.run_round(block.actor, entry)


def _first(error: BaseException) -> BaseException:
    """What went wrong first: a GPU that ends a recording after an error complains of that too."""
    while error.__context__ is not None:
        error = error.__context__
    return error


class CapturePolicy:
    """Which ticks can be one graph: those in which every column trains, as in the tick before and the tick after."""

    def __init__(self, job: Job, num_columns: int) -> None:
        trace, self._lag = job.config.trace, job.config.feedback.lag
        self._traced = range(trace.first_step, trace.first_step + trace.num_steps)
        self._wraps_steps = any(callback.wraps_steps for callback in job.callbacks)
        self._first = [job.start + max(ORDINARY_STEPS, self._lag)] * num_columns

    def is_so(self, tick: Tick) -> bool:
        """To be asked of every tick, in order."""
        for number, entry in tick:
            if entry.phase == "save":  # behind it a lane first uses up the statistics that the checkpoint holds
                self._first[number] = max(self._first[number], entry.step + self._lag)
        return len(tick) == len(self._first) and not self._wraps_steps and all(self._trains(*each) for each in tick)

    def _trains(self, number: int, entry: Round) -> bool:
        """Whether the round is a step that nobody times, and whose lane absorbs what was just sent."""
        is_step = entry.phase == "train" and entry.step >= self._first[number]
        return is_step and entry.step not in self._traced


@dataclass(frozen=True)
class ReplayedLoop:
    """A loop whose round was queued already, messages and all; ``sent`` are the bytes of these, by port."""

    outcome: Outcome | None
    ports: Sequence[Metered]
    sent: Sequence[int]

    @classmethod
    def of(cls, actor: Actor, outcome: Outcome | None) -> ReplayedLoop:
        """The loop of ``actor``, right behind its round."""
        ports = actor.stopwatch.ports
        return cls(outcome, ports, [port.meter.sent for port in ports])

    def run(self, entry: Round) -> Outcome | None:
        for port, sent in zip(self.ports, self.sent, strict=True):
            port.meter.sent = sent
        return self.outcome


@dataclass(frozen=True)
class ReplayedBlock:
    """A block whose step a graph makes."""

    outcome: Outcome

    def forward(self, x: Tensor) -> Tensor:
        return PLACEHOLDER

    def stats(self, alpha: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        return PLACEHOLDER, PLACEHOLDER

    def update(self, alpha: Tensor, target: object, step: int) -> Outcome:
        return self.outcome


class ReplayedFeedback:
    """A feedback network that a graph trains and asks."""

    def absorb(self, sums_KC: Tensor, counts_K: Tensor) -> None:
        """The graph has."""

    def table(self) -> tuple[Rows, Rows]:
        return Rows(), Rows()


class Rows:
    """A table of which a graph has taken the rows of a batch."""

    def __getitem__(self, label_B: Tensor) -> Tensor:
        return PLACEHOLDER


@contextmanager
def substituted(owner: object, name: str, other: object) -> Iterator[None]:
    """Inside ``owner`` has ``other`` in place of what it calls ``name``."""
    own = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, own)


class StaticBuffer:
    """What ``draw`` gives; once it was fetched, a copy of it at the same place every time."""

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        self._draw = draw
        self._room: Tensor | None = None
        self._is_fetched = False

    def fetch(self) -> None:
        """Queues the copy of what comes next, on the current stream, for whoever asks next."""
        drawn = self._draw()
        if self._room is None:
            self._room = torch.empty_like(drawn)
        self._room.copy_(drawn, non_blocking=True)
        self._is_fetched = True

    def take(self) -> Tensor:
        """What comes next, in its place if it was fetched."""
        if not self._is_fetched:
            return self._draw()
        assert self._room is not None, "it was fetched"
        self._is_fetched = False
        return self._room


class StaticImages:
    """Takes the place of what the first block receives."""

    def __init__(self, images: Receiver[Alpha]) -> None:
        self._images, self._rounds = images, list[Round]()
        self._still = StaticBuffer(self._drawn)

    @classmethod
    def of(cls, loop: Loop) -> StaticImages:
        """From now on ``loop``, that of the first block, gets its images from here."""
        assert isinstance(loop, BlockLoop), "blocks have images"
        found = cls(loop.inputs)
        loop.inputs = found
        return found

    def fetch(self) -> None:
        """Queues the copy of the next batch, for the next ``recv``."""
        self._still.fetch()

    def recv(self) -> Alpha:
        x = self._still.take()
        return Alpha(self._rounds.pop(0), x)

    def _drawn(self) -> Tensor:
        message = self._images.recv()
        self._rounds.append(message.round)
        return message.alpha_BCHW


class StaticLabels:
    """Takes the place of what a lane draws its labels from."""

    def __init__(self, labels: Iterator[Tensor]) -> None:
        self._still = StaticBuffer(lambda: next(labels))

    @classmethod
    def of(cls, loop: Loop) -> StaticLabels:
        """From now on ``loop``, that of a lane, gets its labels from here."""
        assert isinstance(loop, FeedbackLoop), "lanes have labels"
        found = cls(loop.labels)
        loop.labels = found
        return found

    def fetch(self) -> None:
        """Queues the copy of the next labels, for the next ``next``."""
        self._still.fetch()

    def __iter__(self) -> StaticLabels:
        return self

    def __next__(self) -> Tensor:
        return self._still.take()
