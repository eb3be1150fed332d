"""The wavefront as one graph: a wavefront step in which every column trains is recorded once, on all streams, and then
launched.

  images, labels, rates     copied to static buffers, on the stream of the graph
  one launch                fork -+- lane 3, block 3 -+- join     what each stream does, and what it waits for inside
                                  +- ...              |           of the step, is in the graph
                                  +- lane 0, block 0 -+
  metrics                   totals of the losses, rounds, rings: of all columns, on the stream of the graph

A graph is right for the slots that it was recorded with, so there is one for every state of the rings that comes: two
at a lag of 1, and two more when tests have taken an odd number of slots. All other steps (the ramps, tests,
checkpoints, lines of metrics, traced steps) are queued round by round, each block's pieces as graphs of their own. The
two ways meet at events: what is queued either way is behind everything that was queued the other way. An event that is
recorded in a graph means nothing outside of it, and no graph can wait for one outside; so rings forget theirs on the
way in and out.

While a graph replaces their arithmetic, loops run as usual: they count their messages and their time, and substitutes
of their block or feedback return the results of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bllpipe.distributed.cuda_streams import PLACEHOLDER, Event, RingLinks, Stream
from bllpipe.engines.job import Job
from bllpipe.errors import ConfigError
from bllpipe.learn.block import Outcome
from bllpipe.learn.cuda_graphs import WARMUP_STEPS, Graphs, uncaptured
from bllpipe.messages import Alpha, Round
from bllpipe.training.loops import BlockLoop, FeedbackLoop, Loop
from bllpipe.training.timing import Metered
from bllpipe.training.worker import Actor, Worker
from bllpipe.utils.tree_sum import Sums

WavefrontStep = Sequence[tuple[int, Round]]  # the rounds of its columns, the last column first


@dataclass(frozen=True, eq=False)
class StreamActor:
    """An actor, the worker that it belongs to, and the stream that it works on."""

    worker: Worker
    actor: Actor
    stream: Stream

    def run_round(self, entry: Round) -> None:
        """Queues one round of the actor."""
        with self.stream.at_work():
            self.worker.run_round(self.actor, entry)

    def wait_for(self, others: Sequence[StreamActor]) -> None:
        """Work queued from now on waits for the work queued on their streams so far."""
        for other in others:
            self.stream.wait(other.stream.record())


class Columns(NamedTuple):
    """Block k and lane k are column k."""

    blocks: Sequence[StreamActor]
    lanes: Sequence[StreamActor]


class Recorded(NamedTuple):
    """The launch of a recorded wavefront step, and its outcomes, in the order of its columns."""

    launch: Callable[[], None]
    outcomes: list[Outcome]


class WavefrontGraph:
    """Runs the wavefront steps that are one graph."""

    def __init__(self, job: Job, columns: Columns, links: RingLinks, graphs: Graphs) -> None:
        self._columns, self._links, self._graphs = columns, links, graphs
        self._stream = links.streams.open("wavefront")
        self._recorded: dict[object, Recorded] = {}
        self._has_launched = False
        self._policy = CapturePolicy(job, len(columns.blocks))
        self._inputs = [static_images(columns.blocks[0].actor.loop)]
        self._inputs += [static_labels(lane.actor.loop) for lane in columns.lanes]

    def run_round(self, wave: WavefrontStep) -> bool:
        """Queues the whole step if it can be one graph. If not, it queues nothing, and work that is queued next waits
        for all steps before it."""
        if not self._policy.can_capture(wave):
            self._leave()
            return False
        self._enter()
        with self._stream.at_work():
            rates = self._fetch(wave)
            recorded = self._recorded.get(self._links.positions)
            if recorded is None:
                self._record(wave, rates)
            else:
                recorded.launch()
                self._update_metrics(
                    wave, [replace(each, lr=lr) for each, lr in zip(recorded.outcomes, rates, strict=True)]
                )
        return True

    def _enter(self) -> None:
        if not self._has_launched:
            self._join(self._stream)
        self._has_launched = True

    def _leave(self) -> None:
        if self._has_launched:
            self._fork(self._stream.record())
        self._has_launched = False

    def _fork(self, event: Event) -> None:
        """The streams of all actors wait for ``event``."""
        for each in (*self._columns.lanes, *self._columns.blocks):
            each.stream.wait(event)

    def _join(self, stream: Stream) -> None:
        """``stream`` waits for what is queued on the streams of all actors."""
        for each in (*self._columns.lanes, *self._columns.blocks):
            stream.wait(each.stream.record())

    def _fetch(self, wave: WavefrontStep) -> list[float]:
        """Copies images and labels to the static buffers of the graph; returns the learning rates."""
        for buffer in self._inputs:
            buffer.fetch()
        return [self._block(number).learner.set_rate(entry.step) for number, entry in wave]

    def _block(self, number: int) -> Any:
        return self._columns.blocks[number].actor.loop.block  # type: ignore[attr-defined]  # its loop is a BlockLoop

    def _record(self, wave: WavefrontStep, rates: Sequence[float]) -> None:
        """Records the step and launches it for the first time."""
        positions = self._links.positions
        try:
            launch, outcomes = self._graphs.record(lambda: self._queue(wave, rates))
        except RuntimeError as error:
            raise ConfigError(
                f"gpu.capture is true, but a wavefront step of all {len(wave)} blocks could not be captured as one "
                f"graph: {_first(error)}; use --set gpu.capture=blocks"
            ) from error
        launch()
        self._links.rebase_events(self._stream.record())
        self._recorded[positions] = Recorded(launch, outcomes)
        for (number, entry), outcome in zip(wave, outcomes, strict=True):
            for each, result in ((self._columns.lanes[number], None), (self._columns.blocks[number], outcome)):
                with substituted(each.actor, "loop", ReplayedLoop.of(each.actor, result)):
                    each.worker.run_round(each.actor, entry)

    def _queue(self, wave: WavefrontStep, rates: Sequence[float]) -> list[Outcome]:
        """The step itself: all streams wait for the recording stream at its start, which waits for all at its end."""
        recording = self._links.streams.current()
        start = recording.record()
        self._fork(start)
        self._links.rebase_events(start)
        outcomes = [self._queue_column(number, entry, lr) for (number, entry), lr in zip(wave, rates, strict=True)]
        self._join(recording)
        return outcomes

    def _queue_column(self, number: int, entry: Round, lr: float) -> Outcome:
        lane, block = self._columns.lanes[number], self._columns.blocks[number]
        for each in (lane, block):
            each.actor.stopwatch.begin()
        with lane.stream.at_work():
            lane.actor.loop.run(entry)
        with block.stream.at_work(), uncaptured(self._block(number), lr):
            outcome = block.actor.loop.run(entry)
        assert outcome is not None, "a block's training step has an outcome"
        return outcome

    def _update_metrics(self, wave: WavefrontStep, outcomes: Sequence[Outcome]) -> None:
        """Every loop runs, with its ports and its metrics, but without its arithmetic."""
        with self._links.moved_by_graph(self._stream.record()):
            for (number, entry), outcome in zip(wave, outcomes, strict=True):
                lane, block = self._columns.lanes[number], self._columns.blocks[number]
                with substituted(lane.actor.loop, "feedback", ReplayedFeedback()):
                    lane.worker.run_round(lane.actor, entry)
                with substituted(block.actor.loop, "block", ReplayedBlock(outcome)):
                    block.worker.run_round(block.actor, entry)


def _first(error: BaseException) -> BaseException:
    """The first error: a GPU that ends a recording after an error reports a second one."""
    while error.__context__ is not None:
        error = error.__context__
    return error


class CapturePolicy:
    """Which wavefront steps can be one graph: those in which every column trains, as in the steps before and after."""

    def __init__(self, job: Job, num_columns: int) -> None:
        trace, self._lag = job.config.trace, job.config.feedback.lag
        self._traced = range(trace.first_step, trace.first_step + trace.num_steps)
        self._wraps_steps = any(callback.wraps_steps for callback in job.callbacks)
        self._first = [job.start + max(WARMUP_STEPS, self._lag)] * num_columns

    def can_capture(self, wave: WavefrontStep) -> bool:
        """Whether the step can be one graph. Must be called for every step, in order."""
        for number, entry in wave:
            if entry.phase == "save":  # after it a lane first absorbs the statistics that the checkpoint holds
                self._first[number] = max(self._first[number], entry.step + self._lag)
        return len(wave) == len(self._first) and not self._wraps_steps and all(self._trains(*each) for each in wave)

    def _trains(self, number: int, entry: Round) -> bool:
        """Whether the round is a step that is not traced, and whose lane absorbs statistics that were just sent."""
        is_step = entry.phase == "train" and entry.step >= self._first[number]
        return is_step and entry.step not in self._traced


@dataclass(frozen=True)
class ReplayedLoop:
    """A loop whose round, with its messages, is queued already. ``sent`` are the bytes of its messages, by port."""

    outcome: Outcome | None
    ports: Sequence[Metered]
    sent: Sequence[int]

    @classmethod
    def of(cls, actor: Actor, outcome: Outcome | None) -> ReplayedLoop:
        """The loop of ``actor``, directly after its round."""
        ports = actor.stopwatch.ports
        return cls(outcome, ports, [port.meter.sent for port in ports])

    def run(self, entry: Round) -> Outcome | None:
        for port, sent in zip(self.ports, self.sent, strict=True):
            port.meter.sent = sent
        return self.outcome


@dataclass(frozen=True)
class ReplayedBlock:
    """A block whose step a graph replays."""

    outcome: Outcome

    def forward(self, x: Tensor) -> Tensor:
        return PLACEHOLDER

    def stats(self, alpha: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
        return PLACEHOLDER, PLACEHOLDER

    def learn(self, alpha: Tensor, target: object, share: float) -> Sums:
        return {}

    def step(self, total: Sums, step: int) -> Outcome:
        return self.outcome


class ReplayedFeedback:
    """A feedback network that a graph trains and evaluates."""

    def absorb(self, sums_KC: Tensor, counts_K: Tensor) -> None:
        """Nothing: the graph has absorbed them."""

    def table(self) -> tuple[Rows, Rows]:
        return Rows(), Rows()


class Rows:
    """A table whose rows for the batch the graph has read."""

    def __getitem__(self, label_B: Tensor) -> Tensor:
        return PLACEHOLDER


@contextmanager
def substituted(owner: object, name: str, other: object) -> Iterator[None]:
    """A context in which the attribute ``name`` of ``owner`` is ``other``."""
    own = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, own)


class StaticBuffer:
    """The results of ``draw``. A result that was fetched is copied to the same memory every time."""

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        self._draw = draw
        self._buffer: Tensor | None = None
        self._is_fetched = False

    def fetch(self) -> None:
        """Queues the copy of the next result on the current stream, for the next ``take``."""
        drawn = self._draw()
        if self._buffer is None:
            self._buffer = torch.empty_like(drawn)
        self._buffer.copy_(drawn, non_blocking=True)
        self._is_fetched = True

    def take(self) -> Tensor:
        """The next result, from the static memory if it was fetched."""
        if not self._is_fetched:
            return self._draw()
        assert self._buffer is not None, "it was fetched"
        self._is_fetched = False
        return self._buffer


def static_images(loop: Loop) -> StaticBuffer:
    """Replaces the input port of ``loop``, the loop of the first block, by one with images in a static buffer."""
    assert isinstance(loop, BlockLoop), "blocks have images"
    images, rounds = loop.inputs, list[Round]()

    def draw() -> Tensor:
        message = images.recv()
        rounds.append(message.round)
        return message.alpha_BCHW

    buffer = StaticBuffer(draw)
    loop.inputs = StaticImages(buffer, rounds)
    return buffer


def static_labels(loop: Loop) -> StaticBuffer:
    """Replaces the labels of ``loop``, the loop of a lane, by the same in a static buffer."""
    assert isinstance(loop, FeedbackLoop), "lanes have labels"
    labels = loop.labels
    buffer = StaticBuffer(lambda: next(labels))
    loop.labels = StaticLabels(buffer)
    return buffer


@dataclass(frozen=True)
class StaticImages:
    """A port that receives the images in ``buffer``, which are those of ``rounds``."""

    buffer: StaticBuffer
    rounds: list[Round]

    def recv(self) -> Alpha:
        x = self.buffer.take()
        return Alpha(self.rounds.pop(0), x)


@dataclass(frozen=True)
class StaticLabels:
    """The labels in ``buffer``."""

    buffer: StaticBuffer

    def __iter__(self) -> StaticLabels:
        return self

    def __next__(self) -> Tensor:
        return self.buffer.take()
