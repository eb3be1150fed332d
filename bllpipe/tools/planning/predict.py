"""Predicted throughput of every way to train one network on several devices, each with the cut that suits it best.

A microbatch, and a replica's share of a batch, costs what was measured for so many images. Where it was not measured it
is assumed to cost its share of the batch, which favours engines that split the batch; block-local learning does not.
Messages overlap with computing, and so does data parallelism's all-reduce with backward, where the link says so. The
feedback rank is left out: its work is a fraction of a block's, and it has a whole step for it.

A schedule is the order in which each rank works, such as one step of 1F1B over three stages and four microbatches:

  rank 0   F0 F1 F2 B0 F3 B1 B2 B3
  rank 1   F0 F1 B0 F2 B1 F3 B2 B3
  rank 2   F0 B0 F1 B1 F2 B2 F3 B3

  F  forward of a microbatch                      needs F of the stage before
  B  backward (all of it, or that of the input)   needs F of its own stage and B of the stage behind
  W  backward of the weights, where B leaves it   needs B of its own stage
  L  a local step: backward, head and update      needs F of its own stage alone
  U  update                                       needs all operations of its rank before it

In the simulation a rank begins each operation, in the order given, as soon as it can. A message between two ranks
travels while both compute; messages of one direction between two stages follow one another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import Literal, NamedTuple

from bllpipe.models.partition import (
    Link,
    UnitCost,
    best_cut,
    in_parts,
    local_cost,
    local_seconds,
    part_size,
    stage_cost,
    stage_seconds,
)

BYTES_OF_A_GRADIENT = 4
STEPS = 4  # after which a schedule repeats itself
Kind = Literal["F", "B", "W", "L", "U"]
StepOrder = Callable[[int, int, int], list[tuple[Kind, int]]]  # (stage, stages, microbatches) -> kinds and microbatches


@dataclass(frozen=True)
class Prediction:
    """What one engine would do: the cut (after how many units), the seconds of a step in steady state, and the share of
    them that each rank computes."""

    engine: str
    num_blocks: int
    microbatches: int | None
    cut: tuple[int, ...]
    step_seconds: float
    images_per_second: float
    speed_up: float
    busy: tuple[float, ...]


@dataclass(frozen=True)
class PredictionInputs:
    """What a prediction starts from: units in order, images in a global batch, the link between devices, what every
    operation of a schedule costs an engine in addition to its computation, in seconds, and the units for parts of a
    batch by their images, as far as they were measured. ``contention`` is how many times longer all of it took because
    the other devices, on the same processor, computed too."""

    units: Sequence[UnitCost]
    batch_size: int
    link: Link
    overhead: float = 0.0
    parts: Mapping[int, Sequence[UnitCost]] = field(default_factory=dict)
    contention: float = 1.0

    def units_in(self, number: int) -> Sequence[UnitCost]:
        """The units for a whole batch that is computed in so many parts."""
        part = self.parts.get(part_size(self.batch_size, number))
        return self.units if part is None else in_parts(self.units, part, number)

    @property
    def single_seconds(self) -> float:
        """A step of the whole network on one device that has the processor for itself, learning end to end."""
        whole = stage_seconds(self.units, 0, len(self.units))
        return (whole.forward + whole.backward + whole.update) / self.contention

    def prediction(
        self, engine: str, cut: Sequence[int], step_seconds: float, busy: Sequence[float], microbatches: int | None
    ) -> Prediction:
        step_seconds *= self.contention_factor(busy)
        rate, speed_up = self.batch_size / step_seconds, self.single_seconds / step_seconds
        return Prediction(engine, len(busy), microbatches, tuple(cut), step_seconds, rate, speed_up, tuple(busy))

    def contention_factor(self, busy: Sequence[float]) -> float:
        """The factor of a step's time when the devices, busy for these shares of it, do not all compute at once: what
        they share is free for the others while one waits."""
        others = sum(busy) / len(busy) if len(busy) > 1 else 1.0
        return (1 + (self.contention - 1) * others) / self.contention

    def blocks(self, cut: Sequence[int]) -> list[tuple[int, int]]:
        """First unit of each block, and first unit behind it."""
        return list(pairwise([0, *cut, len(self.units)]))

    def messages(self, cut: Sequence[int], microbatches: int = 1) -> list[float]:
        """Seconds of a message behind each block but the last."""
        return [self.link.seconds(self.units[end - 1].output_bytes / microbatches) for end in cut]

    def transfer_seconds(self, cut: Sequence[int], microbatches: int = 1) -> list[float]:
        """Seconds of every block that go into one message in and one out; none where links do that by themselves."""
        if self.link.overlaps:
            return [0.0] * (len(cut) + 1)
        messages = self.messages(cut, microbatches)
        return [before + behind for before, behind in zip([0.0, *messages], [*messages, 0.0], strict=True)]


def predict_local(inputs: PredictionInputs, num_blocks: int, memory_limit: float = inf) -> Prediction | None:
    """Block-local learning in steady state; None when there is no such cut.

    It fills once a run: ``run_seconds`` has the fill.
    """
    cut = best_cut(len(inputs.units), num_blocks, local_cost(inputs.units, inputs.link, memory_limit))
    if cut is None:
        return None
    step_seconds, busy = _steady(lambda steps: _simulate_local(inputs, cut, steps))
    return inputs.prediction("bll", cut, step_seconds, busy, microbatches=None)


def run_seconds(inputs: PredictionInputs, cut: Sequence[int], steps: int) -> float:
    """A run of block-local learning from its first batch to the last update, the fill included."""
    few = min(steps, STEPS)
    each, _ = _steady(lambda number: _simulate_local(inputs, cut, number))
    return _simulate_local(inputs, cut, few).makespan + (steps - few) * each


def gpipe(stage: int, stages: int, microbatches: int) -> list[tuple[Kind, int]]:
    """All forwards, then all backwards (Huang et al. 2019)."""
    return [(kind, microbatch) for kind in ("F", "B") for microbatch in range(microbatches)]  # type: ignore[misc]


def one_f_one_b(stage: int, stages: int, microbatches: int) -> list[tuple[Kind, int]]:
    """As many forwards as fill the stages behind, then one backward for one forward (Narayanan et al. 2019)."""
    return _one_f_one_b(stage, stages, microbatches, lambda backward: [("B", backward)])


def zero_bubble(stage: int, stages: int, microbatches: int) -> list[tuple[Kind, int]]:
    """ZB-H1 (Qi et al. 2023): 1F1B whose backwards of the weights come later and fill the bubble.

    Stage k is k of them behind, so that no stage holds more microbatches than the first one does under 1F1B.
    """

    def back(backward: int) -> list[tuple[Kind, int]]:
        return [("B", backward), *([("W", backward - stage)] if backward >= stage else [])]  # type: ignore[list-item]

    left: list[tuple[Kind, int]] = [("W", weights) for weights in range(max(microbatches - stage, 0), microbatches)]
    return _one_f_one_b(stage, stages, microbatches, back) + left


SCHEDULES: dict[str, StepOrder] = {"gpipe": gpipe, "1f1b": one_f_one_b, "zb-h1": zero_bubble}


def predict_pipeline(
    inputs: PredictionInputs, engine: str, num_blocks: int, microbatches: int, memory_limit: float = inf
) -> Prediction | None:
    """A synchronous pipeline with the schedule ``engine``, simulated; None when there is no such cut."""
    units = inputs.units_in(microbatches)
    cut = best_cut(len(units), num_blocks, stage_cost(units, inputs.link, memory_limit))
    if cut is None:
        return None
    splits_backward = engine == "zb-h1"
    seconds = []
    for block, transfer in zip(inputs.blocks(cut), inputs.transfer_seconds(cut, microbatches), strict=True):
        stage, overhead = stage_seconds(units, *block), inputs.overhead + transfer
        backward = stage.backward_of_input if splits_backward else stage.backward
        seconds.append(
            {
                "F": stage.forward / microbatches + overhead,
                "B": backward / microbatches + overhead,
                "W": (stage.backward - backward) / microbatches + overhead * splits_backward,
                "U": stage.update,
            }
        )
    messages = inputs.messages(cut, microbatches) if inputs.link.overlaps else []

    def simulate_steps(steps: int) -> SimulatedTimeline:
        return simulate(seconds, orders_of(SCHEDULES[engine], num_blocks, microbatches, steps), messages)

    return inputs.prediction(engine, cut, *_steady(simulate_steps), microbatches)


def predict_data_parallel(inputs: PredictionInputs, num_devices: int) -> Prediction:
    """Every device has the whole network and its share of the batch; a ring sums the gradients during backward."""
    units = inputs.units_in(num_devices)
    whole = stage_seconds(units, 0, len(units))
    num_bytes = BYTES_OF_A_GRADIENT * sum(unit.parameters for unit in units)
    link, rounds = inputs.link, 2 * (num_devices - 1)
    all_reduce = rounds * link.seconds(num_bytes / num_devices)
    forward, backward = whole.forward / num_devices, whole.backward / num_devices
    step = forward + (max(backward, all_reduce) if link.overlaps else backward + all_reduce) + whole.update
    share = (forward + backward + whole.update) / step
    return inputs.prediction("ddp", (), step, [share] * num_devices, microbatches=None)


def predict_all(
    inputs: PredictionInputs, num_blocks: int, microbatches: Sequence[int], memory_limit: float = inf
) -> list[Prediction]:
    """All engines on ``num_blocks`` devices. Missing are those that the memory limit leaves no cut, and parts of
    a batch without an image. Data parallelism cuts nothing, and is not held to the limit."""
    pipelines = [
        predict_pipeline(inputs, engine, num_blocks, number, memory_limit)
        for engine in SCHEDULES
        for number in microbatches
        if number <= inputs.batch_size
    ]
    replicas = predict_data_parallel(inputs, num_blocks) if num_blocks <= inputs.batch_size else None
    found = [predict_local(inputs, num_blocks, memory_limit), replicas, *pipelines]
    return [prediction for prediction in found if prediction is not None]


def _simulate_local(inputs: PredictionInputs, cut: Sequence[int], steps: int) -> SimulatedTimeline:
    """A local step is a block's work without its forward."""
    seconds = []
    for (first, end), transfer in zip(inputs.blocks(cut), inputs.transfer_seconds(cut), strict=True):
        forward = sum(unit.forward for unit in inputs.units[first:end])
        learning = local_seconds(inputs.units, first, end) - forward
        seconds.append({"F": forward + inputs.overhead + transfer, "L": learning + inputs.overhead})
    messages = inputs.messages(cut) if inputs.link.overlaps else []
    return simulate(seconds, orders_of(local, len(seconds), steps, 1, updates=False), messages)


def _steady(simulate_steps: Callable[[int], SimulatedTimeline]) -> tuple[float, list[float]]:
    """Seconds that one more step takes, and the share of them that each rank computes."""
    before, after = simulate_steps(STEPS), simulate_steps(STEPS + 1)
    step = after.makespan - before.makespan
    works = [
        later * after.makespan - earlier * before.makespan
        for earlier, later in zip(before.busy, after.busy, strict=True)
    ]
    return step, [work / step for work in works]


class Op(NamedTuple):
    """One operation of a schedule; microbatches count on from step to step."""

    stage: int
    microbatch: int
    kind: Kind


Order = Sequence[Op]


@dataclass(frozen=True)
class SimulatedTimeline:
    """When the last rank is done, when each is, and the share of the makespan that each computes."""

    makespan: float
    ends: tuple[float, ...]
    busy: tuple[float, ...]


def simulate(
    seconds: Sequence[Mapping[str, float]], orders: Sequence[Order], messages: Sequence[float] = ()
) -> SimulatedTimeline:
    """The timeline of a schedule.

    Args:
        seconds: how long each kind of operation takes, a mapping a stage.
        orders: what each rank does, in its order.
        messages: seconds of a message between stage k and k + 1, either way; nothing if left out.

    Raises ValueError when ranks wait for each other, or for an operation that is in no order.
    """
    simulation = _Simulation(seconds, orders, messages)
    advanced = True
    while advanced:
        advanced = any(simulation.advance(rank) for rank in range(len(orders)))
    if stuck := [f"rank {rank} at {left[0]}" for rank, left in enumerate(simulation.left) if left]:
        raise ValueError(f"the schedule cannot continue: {'; '.join(stuck)}")
    makespan = max(simulation.clock, default=0.0)
    worked = [sum(seconds[op.stage][op.kind] for op in order) for order in orders]
    return SimulatedTimeline(
        makespan, tuple(simulation.clock), tuple(work / makespan if makespan else 0.0 for work in worked)
    )


class _Simulation:
    """The clock of each rank and the operations left to it, and when each stage has which result."""

    def __init__(
        self, seconds: Sequence[Mapping[str, float]], orders: Sequence[Order], messages: Sequence[float]
    ) -> None:
        self._seconds = seconds
        self._messages = messages or [0.0] * len(seconds)
        self._rank_of = {op.stage: rank for rank, order in enumerate(orders) for op in order}
        self.clock, self.left = [0.0] * len(orders), [deque(order) for order in orders]
        self._ready: dict[tuple[Op, int], float] = {}  # when a stage has the result of an operation
        self._link_free: dict[tuple[int, int], float] = {}

    def advance(self, rank: int) -> bool:
        """Runs all operations of ``rank`` whose inputs are there; returns whether there were any."""
        left = self.left[rank]
        before = len(left)
        while left:
            op = left[0]
            needed = [self._ready.get((other, op.stage)) for other in self._needs(op)]
            if None in needed:
                break
            begin = max([self.clock[rank], *(time for time in needed if time is not None)])
            self.clock[rank] = begin + self._seconds[op.stage][op.kind]
            self._deliver(op, self.clock[rank])
            left.popleft()
        return len(left) < before

    def _needs(self, op: Op) -> Iterator[Op]:
        stage, microbatch, kind = op
        if kind == "F" and stage > 0:
            yield Op(stage - 1, microbatch, "F")
        if kind in ("B", "L"):
            yield Op(stage, microbatch, "F")
        if kind == "B" and stage + 1 < len(self._seconds):
            yield Op(stage + 1, microbatch, "B")
        if kind == "W":
            yield Op(stage, microbatch, "B")

    def _deliver(self, op: Op, now: float) -> None:
        """The stage itself has the result at once; the stage that receives it, after the message."""
        self._ready[op, op.stage] = now
        receiver = {"F": op.stage + 1, "B": op.stage - 1}.get(op.kind, -1)
        if not 0 <= receiver < len(self._seconds):
            return
        if self._rank_of.get(receiver) != self._rank_of[op.stage]:
            link = (op.stage, receiver)
            now = max(now, self._link_free.get(link, 0.0)) + self._messages[min(link)]
            self._link_free[link] = now
        self._ready[op, receiver] = now


def local(stage: int, stages: int, microbatches: int) -> list[tuple[Kind, int]]:
    """Block-local learning: forward, send, learn; whole batches."""
    return [(kind, batch) for batch in range(microbatches) for kind in ("F", "L")]  # type: ignore[misc]


def _one_f_one_b(
    stage: int, stages: int, microbatches: int, back: Callable[[int], list[tuple[Kind, int]]]
) -> list[tuple[Kind, int]]:
    ahead = min(microbatches, stages - stage)
    order: list[tuple[Kind, int]] = [("F", microbatch) for microbatch in range(ahead)]
    for backward in range(microbatches):
        order += back(backward)
        if backward + ahead < microbatches:
            order.append(("F", backward + ahead))
    return order


def orders_of(schedule: StepOrder, stages: int, microbatches: int, steps: int, updates: bool = True) -> list[list[Op]]:
    """``steps`` steps on every rank, one after another, each with an update at its end if ``updates``."""
    end: list[tuple[Kind, int]] = [("U", 0)] if updates else []
    return [
        [
            Op(stage, step * microbatches + microbatch, kind)
            for step in range(steps)
            for kind, microbatch in [*schedule(stage, stages, microbatches), *end]
        ]
        for stage in range(stages)
    ]
