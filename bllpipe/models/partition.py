"""Where a network is cut into blocks: at given units, or so that the most expensive block is as cheap as possible.

Costs are seconds of a batch or numbers of operations; the sums are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

from bllpipe.errors import ConfigError

if TYPE_CHECKING:
    from bllpipe.models.units import Unit

Cost = Callable[[int, int], float]  # of the block of units first .. end - 1; infinite when there cannot be such a block
# Of a cost, what is computed for every part of a batch anew.
COMPUTED = ("forward", "backward", "backward_without_input", "backward_of_input", "head")


def cut(units: Sequence[Unit], blocks: int | Sequence[int | str]) -> list[list[Unit]]:
    """The units of each block; ``blocks`` as in ``bounds``."""
    return [list(units[start:end]) for start, end in bounds([unit.name for unit in units], blocks)]


def bounds(names: Sequence[str], blocks: int | Sequence[int | str]) -> list[tuple[int, int]]:
    """First unit of each block, and first unit behind it. ConfigError when the network cannot be cut so.

    Args:
        names: of all units of the network, in order.
        blocks: a number of blocks of equal numbers of units (the first ones take what is left over, so ResNet-50
            in four is 4/4/4/4), or the cuts themselves: after how many units, or after the unit of which name.
    """
    positions = _equal(len(names), blocks) if isinstance(blocks, int) else _explicit(names, blocks)
    return list(pairwise([0, *positions, len(names)]))


def _equal(num_units: int, num_blocks: int) -> list[int]:
    if num_blocks < 1:
        raise ConfigError(f"blocks={num_blocks}; expected at least 1; use a number from 1 to {num_units}")
    if num_blocks > num_units:
        raise ConfigError(
            f"blocks={num_blocks}, but the network has only {num_units} units to cut between; "
            f"use --set blocks={num_units} or less"
        )
    size, left_over = divmod(num_units, num_blocks)
    return [size * k + min(k, left_over) for k in range(1, num_blocks)]


def _explicit(names: Sequence[str], cuts: Sequence[int | str]) -> list[int]:
    positions = [_position(names, place) for place in cuts]
    if any(later <= earlier for earlier, later in pairwise([0, *positions])):
        raise ConfigError(f"blocks={list(cuts)}: cuts must go forward, each behind the one before it")
    return positions


def _position(names: Sequence[str], place: int | str) -> int:
    found = names.index(place) + 1 if place in names else place
    if not isinstance(found, int) or not 1 <= found < len(names):
        raise ConfigError(
            f"blocks: cannot cut after {place!r}; needed is a number from 1 to {len(names) - 1} "
            f"or one of {', '.join(names[:-1])}"
        )
    return found


def best_cut(num_units: int, num_blocks: int, cost: Cost) -> list[int] | None:
    """After how many units to cut, for ``num_blocks`` blocks; None when every cut has a block that cannot be.

    Exact: no cut has a smaller largest cost, and among those that have the same, none a smaller sum of squares, so
    that what is not the bottleneck is even too. Takes O(num_blocks * num_units^2).
    """
    known = {(first, end): cost(first, end) for end in range(num_units + 1) for first in range(end)}
    smallest, _ = _optimum(num_units, num_blocks, known, max)
    if smallest == inf:
        return None
    within = {block: value if value <= smallest else inf for block, value in known.items()}
    return _optimum(num_units, num_blocks, within, _add_square)[1]


def largest(cut: list[int], num_units: int, cost: Cost) -> float:
    """The cost of the dearest block of ``cut``."""
    return max(cost(first, end) for first, end in pairwise([0, *cut, num_units]))


def _add_square(total: float, block: float) -> float:
    return total + block * block


def _optimum(
    num_units: int, num_blocks: int, cost: dict[tuple[int, int], float], join: Callable[[float, float], float]
) -> tuple[float, list[int]]:
    """The smallest value of a cut, joined from left to right, and the cut; of equals the one that cuts earliest.

    ``best[end]`` is the smallest value of the units before ``end`` in as many blocks as were added so far.
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
    ``backward_of_input`` only the latter. ``head`` is everything that a block adds which ends with this unit: local
    head and loss there and back, the head's update, the statistics; for the last unit the network's own loss.
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
    """Images of the largest of so many parts of a batch."""
    return -(-batch_size // number)


def in_parts(units: Sequence[UnitCost], part: Sequence[UnitCost], number: int) -> list[UnitCost]:
    """What ``units`` take for their batch in ``number`` parts, each of which takes ``part``; all that is not computed a
    part stays that of the batch."""
    return [
        replace(whole, **{name: number * getattr(piece, name) for name in COMPUTED})
        for whole, piece in zip(units, part, strict=True)
    ]


@dataclass(frozen=True)
class Link:
    """What joins two devices, each way. Unless it ``overlaps``, as a processor's does not, the devices themselves carry
    the messages and compute nothing meanwhile."""

    bytes_per_second: float = inf
    latency: float = 0.0
    overlaps: bool = True

    def seconds(self, num_bytes: float) -> float:
        """How long a message is on its way."""
        return self.latency + num_bytes / self.bytes_per_second


def local_seconds(units: Sequence[UnitCost], first: int, end: int) -> float:
    """A block that learns from its own loss: its first unit needs no gradient of its input."""
    block = units[first:end]
    spared = block[0].backward - block[0].backward_without_input
    return sum(unit.forward + unit.backward + unit.update for unit in block) + block[-1].head - spared


@dataclass(frozen=True)
class StageSeconds:
    """A stage of a synchronous pipeline and a whole batch. ``backward`` is all of the way back, of which
    ``backward_of_input`` is what the stage before waits for."""

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
        spared = stage[0].backward - stage[0].backward_without_input
        backward, of_input = backward - spared, max(of_input - spared, loss)
    return StageSeconds(sum(unit.forward for unit in stage), backward, of_input, sum(unit.update for unit in stage))


def local_cost(units: Sequence[UnitCost], link: Link, memory_limit: float = inf) -> Cost:
    """What a step of block-local learning takes of a block's device and of its links."""

    def cost(first: int, end: int) -> float:
        if _is_impossible(units, first, end, memory_limit, heads=True):
            return inf
        return _with_messages(units, first, end, link, local_seconds(units, first, end))

    return cost


def stage_cost(units: Sequence[UnitCost], link: Link, memory_limit: float = inf) -> Cost:
    """The same for a stage of a synchronous pipeline; as many bytes travel back as forth, on another lane."""

    def cost(first: int, end: int) -> float:
        if _is_impossible(units, first, end, memory_limit, heads=False):
            return inf
        seconds = stage_seconds(units, first, end)
        return _with_messages(units, first, end, link, seconds.forward + seconds.backward, lanes=2)

    return cost


def memory_bytes(units: Sequence[UnitCost], first: int, end: int, heads: bool = True) -> int:
    """What a block keeps of one batch in flight, with its input and, if ``heads``, its head."""
    received = units[first - 1].output_bytes if first else 0
    head = units[end - 1].head_memory_bytes if heads else 0
    return sum(unit.memory_bytes for unit in units[first:end]) + received + head


def _is_impossible(units: Sequence[UnitCost], first: int, end: int, memory_limit: float, heads: bool) -> bool:
    """A block without parameters cannot learn."""
    nothing_to_learn = not any(unit.parameters for unit in units[first:end])
    return nothing_to_learn or memory_bytes(units, first, end, heads) > memory_limit


def _with_messages(
    units: Sequence[UnitCost], first: int, end: int, link: Link, computing: float, lanes: int = 1
) -> float:
    receive = link.seconds(units[first - 1].output_bytes) if first else 0.0
    send = link.seconds(units[end - 1].output_bytes) if end < len(units) else 0.0
    return max(computing, receive, send) if link.overlaps else computing + lanes * (receive + send)
