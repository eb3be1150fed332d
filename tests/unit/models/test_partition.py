"""The best cut against all cuts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, pairwise
from math import inf

import pytest

from bllpipe.models.partition import best_cut, largest


def all_cuts(num_units: int, num_blocks: int) -> list[list[int]]:
    return [list(cut) for cut in combinations(range(1, num_units), num_blocks - 1)]


def block_costs(table: dict[tuple[int, int], float], cut: Sequence[int], num_units: int) -> list[float]:
    return [table[block] for block in pairwise([0, *cut, num_units])]


def random_table(draws: random.Random, num_units: int, most: int) -> dict[tuple[int, int], float]:
    """Costs that are no sums, so that nothing but trying all of them is right; some blocks cannot be."""
    blocks = combinations(range(num_units + 1), 2)
    return {block: inf if draws.random() < 0.1 else draws.randint(1, most) for block in blocks}


@pytest.mark.parametrize("seed", range(60))
def test_no_cut_is_better(seed: int) -> None:
    """Neither in its largest block nor, among those that are as good, in its sum of squares."""
    draws = random.Random(seed)
    num_units = draws.randint(1, 9)
    num_blocks = draws.randint(1, num_units)
    table = random_table(draws, num_units, most=draws.choice([3, 1000]))
    costs = [block_costs(table, cut, num_units) for cut in all_cuts(num_units, num_blocks)]
    possible = [(max(each), sum(value**2 for value in each)) for each in costs if max(each) < inf]
    found = best_cut(num_units, num_blocks, lambda first, end: table[first, end])
    if found is None:
        assert not possible
    else:
        assert len(found) == num_blocks - 1
        each = block_costs(table, found, num_units)
        assert (max(each), sum(value**2 for value in each)) == min(possible)
        assert largest(found, num_units, lambda first, end: table[first, end]) == max(each)


def test_what_is_not_the_bottleneck_is_even_too() -> None:
    units = [9, 2, 2, 2, 2]
    assert best_cut(5, 3, lambda first, end: sum(units[first:end])) == [1, 3]


def test_of_equal_cuts_the_first_is_taken() -> None:
    assert best_cut(3, 2, lambda first, end: end - first) == [1]


@pytest.mark.parametrize("seed", range(10))
def test_more_blocks_are_never_slower(seed: int) -> None:
    draws = random.Random(seed)
    units = [draws.random() for _ in range(12)]

    def cost(first: int, end: int) -> float:
        return sum(units[first:end])

    slowest = []
    for num_blocks in range(1, 13):
        cut = best_cut(12, num_blocks, cost)
        assert cut is not None
        slowest.append(largest(cut, 12, cost))
    assert slowest == sorted(slowest, reverse=True)
    assert slowest[-1] == max(units)


def test_a_cheaper_unit_never_makes_it_slower() -> None:
    draws = random.Random(3)
    for _ in range(20):
        units = [draws.randint(1, 9) for _ in range(8)]
        cheaper = list(units)
        cheaper[draws.randrange(8)] -= 1
        slowest = [_slowest(each, 3) for each in (units, cheaper)]
        assert slowest[1] <= slowest[0]


def _slowest(units: Sequence[int], num_blocks: int) -> float:
    cut = best_cut(len(units), num_blocks, lambda first, end: sum(units[first:end]))
    assert cut is not None
    return largest(cut, len(units), lambda first, end: sum(units[first:end]))


def test_more_blocks_than_units_are_impossible() -> None:
    assert best_cut(3, 4, lambda first, end: 1.0) is None


def test_one_block_is_no_cut() -> None:
    assert best_cut(3, 1, lambda first, end: 1.0) == []
