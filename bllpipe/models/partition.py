"""Where a network is cut into blocks: at given units, or so that the cost of the most expensive block is smallest.

Costs are seconds of a batch or numbers of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

from bllpipe.errors import ConfigError

if TYPE_CHECKING:
    from bllpipe.models.units import Unit

Cost = Callable[[int, int], float]  # of the block of units first .. end - 1; infinite if there cannot be such a block
# Fields of a cost that are computed for every part of a batch.
COMPUTED = ("forward", "backward", "backward_without_input", "backward_of_input", "head")


def cut(units: Sequence[Unit], blocks: int | Sequence[int | str]) -> list[list[Unit]]:
    """The units of each block; ``blocks`` as in ``bounds``."""
    return [list(units[start:end]) for start, end in bounds([unit.name for unit in units], blocks)]


def bounds(names: Sequence[str], blocks: int | Sequence[int | str]) -> list[tuple[int, int]]:
    """First unit of each block, and first unit after it. Raises ConfigError for an impossible cut.

    Args:
        names: of all units of the network, in order.
        blocks: a number of blocks of equal numbers of units (the first ones take the remainder, so ResNet-50
            in four is 4/4/4/4), or the cuts: numbers of units, or names of the unit before each cut.
    """
    if isinstance(blocks, int):
        positions = _equal(len(names), blocks)
    else:
        positions = [_position(names, place) for place in blocks]
        if any(later <= earlier for earlier, later in pairwise([0, *positions])):
            raise ConfigError(
                f"blocks={list(blocks)}: expected cuts in order, each after the one before it; use another order"
            )
    return list(pairwise([0, *positions, len(names)]))


def _equal(num_units: int, num_blocks: int) -> list[int]:
    if num_blocks < 1:
        raise ConfigError(f"blocks={num_blocks}; expected at least 1; use a number from 1 to {num_units}")
    if num_blocks > num_units:
        raise ConfigError(
            f"blocks={num_blocks}, but the network has only {num_units} units to cut between; "
            f"use --set blocks={num_units} or less"
        )
    size, remainder = divmod(num_units, num_blocks)
    return [size * k + min(k, remainder) for k in range(1, num_blocks)]


def _position(names: Sequence[str], place: int | str) -> int:
    position = names.index(place) + 1 if place in names else place
    if not isinstance(position, int) or not 1 <= position < len(names):
        raise ConfigError(
            f"blocks: cannot cut after {place!r}; expected a number from 1 to {len(names) - 1} "
            f"or one of {', '.join(names[:-1])}"
        )
    return position


def best_cut(num_units: int, num_blocks: int, cost: Cost) -> list[int] | None:
    """Positions of the cuts (numbers of units) for ``num_blocks`` blocks; None when every cut has an impossible block.

    Exact: no cut has a smaller largest cost, and among cuts with the same largest cost none has a smaller sum of
    squares, so that the other blocks are even too. Takes O(num_blocks * num_units^2).
    """
    known = {(first, end): cost(first, end) for end in range(num_units + 1) for first in range(end)}
    smallest, _ = _optimum(num_units, num_blocks, known, max)
    if smallest == inf:
        return None
    within = {block: value if value <= smallest else inf for block, value in known.items()}
    return _optimum(num_units, num_blocks, within, lambda total, block: total + block * block)[1]


def largest(cut: list[int], num_units: int, cost: Cost) -> float:
    """The cost of the most expensive block of ``cut``."""
    return max(cost(first, end) for first, end in pairwise([0, *cut, num_units]))


def _optimum(
    num_units: int, num_blocks: int, cost: dict[tuple[int, int], float], join: Callable[[float, float], float]
) -> tuple[float, list[int]]:
    """The smallest value of a cut, joined from left to right, and the cut; among equals the one with the earliest cuts.

    ``best[end]`` is the smallest value of the units before ``end`` in the number of blocks added so far.
    """
    best: list[tuple[float, list[int]]] = [(0, []), *([(inf, [])] * num_units)]
    for blocks in range(1, num_blocks + 1):
        best = [
            min(
                ((join(best[first][0], cost[first, end]), [*best[first][1], end]) for first in range(blocks - 1, end)),
                default=(inf, []),
            )
            for end in range(num_units + 1)
        ]
    value, ends = best[num_units]
    return value, ends[:-1]


@dataclass(frozen=True)
class UnitCost:
    """One unit and one batch.

    ``backward`` makes the gradients of parameters and of the input, ``backward_without_input`` only the former,
    ``backward_of_input`` only the latter. ``head`` is what a block adds that ends with this unit: local head and loss
    forward and backward, the head's update, the statistics; for the last unit the loss of the network.
    """

    forward: float
    backward: float
    backward_without_input: float
    backward_of_input: float
    update: float
    head: float
    parameters: int
    output_bytes: int = 0
    memory_bytes: int = 0
    head_memory_bytes: int = 0


def part_size(batch_size: int, number: int) -> int:
    """Images of the largest of ``number`` parts of a batch."""
    return -(-batch_size // number)


def in_parts(units: Sequence[UnitCost], part: Sequence[UnitCost], number: int) -> list[UnitCost]:
    """The costs of ``units`` for a batch in ``number`` parts, each with the costs ``part``; fields that are not in
    COMPUTED are those of the whole batch."""
    return [
        replace(whole, **{name: number * getattr(piece, name) for name in COMPUTED})
        for whole, piece in zip(units, part, strict=True)
    ]


@dataclass(frozen=True)
class Link:
    """A link between two devices, per direction. Unless it ``overlaps`` (between CPUs it does not), the devices
    themselves carry the messages and compute nothing meanwhile."""

    bytes_per_second: float = inf
    latency: float = 0.0
    overlaps: bool = True

    def seconds(self, num_bytes: float) -> float:
        """The transfer time of a message."""
        return self.latency + num_bytes / self.bytes_per_second


def local_seconds(units: Sequence[UnitCost], first: int, end: int) -> float:
    """A block that learns from a local loss: its first unit needs no gradient of its input."""
    block = units[first:end]
    saved = block[0].backward - block[0].backward_without_input
    return sum(unit.forward + unit.backward + unit.update for unit in block) + block[-1].head - saved


@dataclass(frozen=True)
class StageSeconds:
    """A stage of a synchronous pipeline and a whole batch. ``backward`` is the whole backward pass;
    ``backward_of_input`` is the part of it that the stage before waits for."""

    forward: float
    backward: float
    backward_of_input: float
    update: float


def stage_seconds(units: Sequence[UnitCost], first: int, end: int) -> StageSeconds:
    """A stage has no head; the last one has the loss, and the first one's images need no gradient."""
    stage = units[first:end]
    loss = units[-1].head if end == len(units) else 0.0
    backward = sum(unit.backward for unit in stage) + loss
    of_input = sum(unit.backward_of_input for unit in stage) + loss
    if first == 0:
        saved = stage[0].backward - stage[0].backward_without_input
        backward, of_input = backward - saved, max(of_input - saved, loss)
    return StageSeconds(sum(unit.forward for unit in stage), backward, of_input, sum(unit.update for unit in stage))


def local_cost(units: Sequence[UnitCost], link: Link, memory_limit: float = inf) -> Cost:
    """The cost of a step of block-local learning on the device and the links of a block."""
    return _block_cost(units, link, memory_limit, partial(local_seconds, units), heads=True, directions=1)


def stage_cost(units: Sequence[UnitCost], link: Link, memory_limit: float = inf) -> Cost:
    """The same for a stage of a synchronous pipeline; backward messages are as large as forward ones."""

    def computing(first: int, end: int) -> float:
        seconds = stage_seconds(units, first, end)
        return seconds.forward + seconds.backward

    return _block_cost(units, link, memory_limit, computing, heads=False, directions=2)


def _block_cost(
    units: Sequence[UnitCost], link: Link, memory_limit: float, computing: Cost, heads: bool, directions: int
) -> Cost:
    """``computing`` with the messages of a block; infinite for a block that is too large, or cannot learn."""

    def cost(first: int, end: int) -> float:
        has_parameters = any(unit.parameters for unit in units[first:end])
        if not has_parameters or memory_bytes(units, first, end, heads) > memory_limit:
            return inf
        receive = link.seconds(units[first - 1].output_bytes) if first else 0.0
        send = link.seconds(units[end - 1].output_bytes) if end < len(units) else 0.0
        seconds = computing(first, end)
        return max(seconds, receive, send) if link.overlaps else seconds + directions * (receive + send)

    return cost


def memory_bytes(units: Sequence[UnitCost], first: int, end: int, heads: bool = True) -> int:
    """Bytes that a block keeps of one batch in flight, with its input and, if ``heads``, its head."""
    received = units[first - 1].output_bytes if first else 0
    head = units[end - 1].head_memory_bytes if heads else 0
    return sum(unit.memory_bytes for unit in units[first:end]) + received + head
