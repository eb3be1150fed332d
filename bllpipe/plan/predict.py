"""Predicted throughput of every way to train one network on several devices, each with the cut that suits it best.
Imports no torch.

A microbatch, and a replica's share of a batch, costs what was measured for so many images. Where it was not measured it
is taken to cost its share of the batch, which flatters whatever splits it; block-local learning does not. Messages
overlap with computing, and so does data parallelism's all-reduce with backward, where the link says so. The feedback
rank is left out: it has a fraction of a block's work, and a step's time for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

from bllpipe.plan.costs import (
    Link,
    StageSeconds,
    UnitCost,
    in_parts,
    local_cost,
    local_seconds,
    part_size,
    stage_cost,
    stage_seconds,
)
from bllpipe.plan.partition import best_cut
from bllpipe.plan.schedules import StepOrder, gpipe, local, one_f_one_b, orders_of, zero_bubble
from bllpipe.plan.simulate import Timeline, simulate

BYTES_OF_A_GRADIENT = 4
STEPS = 4  # after which a schedule repeats itself


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
class Setting:
    """What a prediction starts from: units in order, images in a global batch, the link between devices, what every
    operation of a schedule costs an engine beside its computing, in seconds, and the units for parts of a batch by
    their images, as far as they were measured. ``contention`` is how many times longer all of it took because the
    other devices, on the same processor, computed too."""

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
        step_seconds *= self.relief(busy)
        rate, speed_up = self.batch_size / step_seconds, self.single_seconds / step_seconds
        return Prediction(engine, len(busy), microbatches, tuple(cut), step_seconds, rate, speed_up, tuple(busy))

    def relief(self, busy: Sequence[float]) -> float:
        """How much shorter a step is because the devices, busy for these shares of it, leave each other what they share
        while they wait."""
        others = sum(busy) / len(busy) if len(busy) > 1 else 1.0
        return (1 + (self.contention - 1) * others) / self.contention

    def blocks(self, cut: Sequence[int]) -> list[tuple[int, int]]:
        """First unit of each block, and first unit behind it."""
        return list(pairwise([0, *cut, len(self.units)]))

    def messages(self, cut: Sequence[int], microbatches: int = 1) -> list[float]:
        """Seconds of a message behind each block but the last."""
        return [self.link.seconds(self.units[end - 1].output_bytes / microbatches) for end in cut]

    def carrying(self, cut: Sequence[int], microbatches: int = 1) -> list[float]:
        """Seconds of every block that go into one message in and one out; none where links do that by themselves."""
        if self.link.overlaps:
            return [0.0] * (len(cut) + 1)
        messages = self.messages(cut, microbatches)
        return [before + behind for before, behind in zip([0.0, *messages], [*messages, 0.0], strict=True)]


def predict_local(setting: Setting, num_blocks: int, memory_limit: float = inf) -> Prediction | None:
    """Block-local learning in steady state; None when there is no such cut.

    It fills once a run: ``run_seconds`` has the fill.
    """
    cut = best_cut(len(setting.units), num_blocks, local_cost(setting.units, setting.link, memory_limit))
    if cut is None:
        return None
    return setting.prediction("bll", cut, *_steady(lambda steps: _play_local(setting, cut, steps)), microbatches=None)


def run_seconds(setting: Setting, cut: Sequence[int], steps: int) -> float:
    """A run of block-local learning from its first batch to the last update, the fill included."""
    few = min(steps, STEPS)
    each, _ = _steady(lambda number: _play_local(setting, cut, number))
    return _play_local(setting, cut, few).makespan + (steps - few) * each


SCHEDULES: dict[str, StepOrder] = {"gpipe": gpipe, "1f1b": one_f_one_b, "zb-h1": zero_bubble}


def predict_pipeline(
    setting: Setting, engine: str, num_blocks: int, microbatches: int, memory_limit: float = inf
) -> Prediction | None:
    """A synchronous pipeline with the schedule ``engine``, by playing it; None when there is no such cut."""
    units = setting.units_in(microbatches)
    cut = best_cut(len(units), num_blocks, stage_cost(units, setting.link, memory_limit))
    if cut is None:
        return None
    seconds = [
        _of_a_microbatch(stage_seconds(units, *block), microbatches, engine == "zb-h1", setting.overhead + carrying)
        for block, carrying in zip(setting.blocks(cut), setting.carrying(cut, microbatches), strict=True)
    ]
    messages = setting.messages(cut, microbatches) if setting.link.overlaps else []

    def play(steps: int) -> Timeline:
        return simulate(seconds, orders_of(SCHEDULES[engine], num_blocks, microbatches, steps), messages)

    return setting.prediction(engine, cut, *_steady(play), microbatches)


def predict_data_parallel(setting: Setting, num_devices: int) -> Prediction:
    """Every device has the whole network and its share of the batch; a ring sums the gradients during backward."""
    units = setting.units_in(num_devices)
    whole = stage_seconds(units, 0, len(units))
    num_bytes = BYTES_OF_A_GRADIENT * sum(unit.parameters for unit in units)
    link, rounds = setting.link, 2 * (num_devices - 1)
    all_reduce = rounds * link.seconds(num_bytes / num_devices)
    forward, backward = whole.forward / num_devices, whole.backward / num_devices
    step = forward + (max(backward, all_reduce) if link.overlaps else backward + all_reduce) + whole.update
    share = (forward + backward + whole.update) / step
    return setting.prediction("ddp", (), step, [share] * num_devices, microbatches=None)


def predict_all(
    setting: Setting, num_blocks: int, microbatches: Sequence[int], memory_limit: float = inf
) -> list[Prediction]:
    """All engines on ``num_blocks`` devices. Missing are those that the memory limit leaves no cut, and parts of
    a batch without an image. Data parallelism cuts nothing, and is not held to the limit."""
    pipelines = [
        predict_pipeline(setting, engine, num_blocks, number, memory_limit)
        for engine in SCHEDULES
        for number in microbatches
        if number <= setting.batch_size
    ]
    replicas = predict_data_parallel(setting, num_blocks) if num_blocks <= setting.batch_size else None
    found = [predict_local(setting, num_blocks, memory_limit), replicas, *pipelines]
    return [prediction for prediction in found if prediction is not None]


def _play_local(setting: Setting, cut: Sequence[int], steps: int) -> Timeline:
    """A local step is a block's work without its forward."""
    blocks = setting.blocks(cut)
    forward = [sum(unit.forward for unit in setting.units[first:end]) for first, end in blocks]
    totals = [local_seconds(setting.units, first, end) for first, end in blocks]
    extra, carrying = setting.overhead, setting.carrying(cut)
    seconds = [
        {"F": there + extra + carried, "L": total - there + extra}
        for there, total, carried in zip(forward, totals, carrying, strict=True)
    ]
    messages = setting.messages(cut) if setting.link.overlaps else []
    return simulate(seconds, orders_of(local, len(blocks), steps, 1, updates=False), messages)


def _of_a_microbatch(
    stage: StageSeconds, microbatches: int, splits_backward: bool, overhead: float
) -> dict[str, float]:
    backward = stage.backward_of_input if splits_backward else stage.backward
    return {
        "F": stage.forward / microbatches + overhead,
        "B": backward / microbatches + overhead,
        "W": (stage.backward - backward) / microbatches + overhead * splits_backward,
        "U": stage.update,
    }


def _steady(play: Callable[[int], Timeline]) -> tuple[float, list[float]]:
    """Seconds that one more step takes, and the share of them that each rank computes."""
    before, after = play(STEPS), play(STEPS + 1)
    step = after.makespan - before.makespan
    works = [
        later * after.makespan - earlier * before.makespan
        for earlier, later in zip(before.busy, after.busy, strict=True)
    ]
    return step, [work / step for work in works]
