"""Cutting a row of units into blocks so that the dearest block is as cheap as can be. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import inf

Cost = Callable[[int, int], float]  # of the block of units first .. end - 1; infinite when there cannot be such a block


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
