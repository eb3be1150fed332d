"""Clocks of synchronous pipelines on many devices: every rank runs a program of receives, sends and passes.

    post 3: send F2 to the next rank, receive B0 from it     all messages that are posted together
    wait 3                                                   until all of them are sent or there
    B0                                                       a pass

With a handshake a message begins when its sender knows of the receive, a latency after it was posted. torch posts the
receives of 1F1B only when they are needed, together with a send, and waits for both; so a message may take two
latencies, and a rank waits for the rank that receives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.random import Generator

from bllpipe.tools.planning.cluster.clocks import Draws
from bllpipe.tools.planning.cluster.description import Floats
from bllpipe.tools.planning.predict import Kind, StepOrder, zero_bubble


class Message(NamedTuple):
    """Of a microbatch: activations (F) to the next stage, or gradients (B) to the one before."""

    kind: Literal["F", "B"]
    src: int
    microbatch: int


class Post(NamedTuple):
    sends: tuple[Message, ...]
    receives: tuple[Message, ...]


class Wait(NamedTuple):
    """For all messages of a post."""

    post: Post


class Pass(NamedTuple):
    """A pass of the schedule (predict.py), or U, the update at the end of a step."""

    kind: Kind
    microbatch: int


Program = Iterator[Post | Wait | Pass]
ProgramOf = Callable[[int, int, int, int], Program]  # (stage, stages, microbatches, first microbatch)


def one_f_one_b(stage: int, stages: int, microbatches: int, first: int) -> Program:
    """torch's Schedule1F1B: a step of rank ``stage``, whose microbatches count from ``first``."""
    ahead = min(microbatches, stages - stage)
    last = first + microbatches
    sent: Post | None = None
    for forward in range(first, first + ahead):
        yield from _together((), _inputs(stage, forward))
        yield Pass("F", forward)
        if sent is not None:
            yield Wait(sent)
        if forward < first + ahead - 1:
            sent = Post(_outputs(stage, stages, forward), ())
            yield sent
    sends, forward = _outputs(stage, stages, first + ahead - 1), first + ahead
    for backward in range(first, last - ahead + 1):
        yield from _together(sends, _gradients(stage, stages, backward))
        yield Pass("B", backward)
        if forward == last:
            break
        yield from _together(_input_gradients(stage, backward), _inputs(stage, forward))
        yield Pass("F", forward)
        sends, forward = _outputs(stage, stages, forward), forward + 1
    sent = Post(_input_gradients(stage, last - ahead), ())
    yield sent
    for backward in range(last - ahead + 1, last):
        yield from _together((), _gradients(stage, stages, backward))
        yield Pass("B", backward)
        yield Wait(sent)
        sent = Post(_input_gradients(stage, backward), ())
        yield sent
    yield Wait(sent)
    yield Pass("U", first)


def in_order(schedule: StepOrder) -> ProgramOf:
    """The program of a rank that does the passes of ``schedule``, receives before each of them, and never waits for
    what it sends."""

    def program(stage: int, stages: int, microbatches: int, first: int) -> Program:
        for kind, number in schedule(stage, stages, microbatches):
            microbatch = first + number
            if kind == "F":
                yield from _together((), _inputs(stage, microbatch))
            elif kind == "B":
                yield from _together((), _gradients(stage, stages, microbatch))
            yield Pass(kind, microbatch)
            if kind == "F":
                yield Post(_outputs(stage, stages, microbatch), ())
            elif kind == "B":
                yield Post(_input_gradients(stage, microbatch), ())
        yield Pass("U", first)

    return program


PROGRAMS: dict[str, ProgramOf] = {"1f1b": one_f_one_b, "zero-bubble": in_order(zero_bubble)}


def _together(sends: tuple[Message, ...], receives: tuple[Message, ...]) -> Program:
    post = Post(sends, receives)
    yield post
    yield Wait(post)


def _inputs(stage: int, microbatch: int) -> tuple[Message, ...]:
    return (Message("F", stage - 1, microbatch),) if stage > 0 else ()


def _outputs(stage: int, stages: int, microbatch: int) -> tuple[Message, ...]:
    return (Message("F", stage, microbatch),) if stage + 1 < stages else ()


def _gradients(stage: int, stages: int, microbatch: int) -> tuple[Message, ...]:
    return (Message("B", stage + 1, microbatch),) if stage + 1 < stages else ()


def _input_gradients(stage: int, microbatch: int) -> tuple[Message, ...]:
    return (Message("B", stage, microbatch),) if stage > 0 else ()


@dataclass(frozen=True)
class StageClock:
    """A stage of every pipeline: seconds of the passes of a microbatch by kind, with the update (U) at the end of a
    step; of the sum of gradients over all pipelines; and, of the link to the next stage, latency and transfer,
    vectors with an element for every pipeline or numbers."""

    seconds: Mapping[str, float]
    sum: float = 0.0
    latency: Floats | float = 0.0
    transfer: Floats | float = 0.0


def simulate_pipelines(
    stages: Sequence[StageClock],
    program: ProgramOf,
    microbatches: int,
    num_pipelines: int,
    steps: int,
    handshake: bool = True,
    jitter: float = 0.0,
    random: Generator | None = None,
) -> Floats:
    """When each step is done everywhere, in seconds [steps]."""
    simulation = _Pipelines(stages, num_pipelines, handshake, Draws(jitter, random))
    return np.array([simulation.step(program, microbatches, step * microbatches) for step in range(steps)])


class _Pipelines:
    def __init__(self, stages: Sequence[StageClock], num_pipelines: int, handshake: bool, draws: Draws) -> None:
        self._stages, self._pipelines, self._handshake, self._draws = stages, num_pipelines, handshake, draws
        self._clocks = [np.zeros(num_pipelines) for _ in stages]
        self._sends: dict[Message, Floats] = {}
        self._receives: dict[Message, Floats] = {}
        self._done: dict[Message, tuple[Floats, Floats]] = {}  # sent, arrived
        self._link_free: dict[tuple[str, int], Floats] = {}

    def step(self, program: ProgramOf, microbatches: int, first: int) -> float:
        """Simulates a step; returns when it is done."""
        number = len(self._stages)
        left = [list(program(stage, number, microbatches, first))[::-1] for stage in range(number)]
        for settled in (self._sends, self._receives, self._done):
            settled.clear()
        waiting = list(range(number))
        while waiting:
            before = sum(map(len, left))
            for stage in waiting:
                self._advance(stage, left[stage])
            assert sum(map(len, left)) < before, "a schedule ends"
            waiting = [stage for stage in waiting if left[stage]]
        return max(float(clock.max()) for clock in self._clocks)

    def _advance(self, stage: int, left: list[Post | Wait | Pass]) -> None:
        """Does what the stage can do without messages that are not posted yet."""
        while left:
            match left[-1]:
                case Post(sends, receives):
                    self._sends |= dict.fromkeys(sends, self._clocks[stage])
                    self._receives |= dict.fromkeys(receives, self._clocks[stage])
                case Wait(post):
                    sends = post.sends if self._handshake else ()  # else a buffer holds them
                    if not all(self._is_settled(each) for each in (*sends, *post.receives)):
                        return
                    for each in sends:
                        self._clocks[stage] = np.maximum(self._clocks[stage], self._settled(each)[0])
                    for each in post.receives:
                        self._clocks[stage] = np.maximum(self._clocks[stage], self._settled(each)[1])
                case Pass(kind, _):
                    self._pass(stage, kind)
            left.pop()

    def _pass(self, stage: int, kind: str) -> None:
        seconds, now = self._stages[stage].seconds.get(kind, 0.0), self._clocks[stage]
        if kind != "U":
            self._clocks[stage] = now + seconds * self._draws.of(self._pipelines)
        else:
            if self._pipelines > 1:
                now = np.full(self._pipelines, float(now.max()) + self._stages[stage].sum)
            self._clocks[stage] = now + seconds

    def _is_settled(self, message: Message) -> bool:
        """Whether both ends have posted it; without a handshake, whether it is sent."""
        return message in self._sends and (not self._handshake or message in self._receives)

    def _settled(self, message: Message) -> tuple[Floats, Floats]:
        """When the message is sent, and when it is there. Asked for once by both ends, in the order of messages."""
        if message not in self._done:
            link = self._stages[message.src if message.kind == "F" else message.src - 1]
            start = self._sends[message]
            if self._handshake:
                start = np.maximum(start, self._receives[message] + link.latency)
            start = np.maximum(start, self._link_free.get(message[:2], 0.0))
            sent = start + link.transfer
            self._link_free[message[:2]] = sent
            self._done[message] = sent, sent + link.latency
        return self._done[message]
