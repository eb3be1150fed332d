"""The order of additions depends on the number of shards alone."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import Tensor

from bllpipe.utils.tree_sum import TreeSum, nodes_of

MOST = 17


def shards(number: int) -> list[Tensor]:
    return [torch.randn(50, generator=torch.Generator().manual_seed(shard)) for shard in range(number)]


def by_definition(values: list[Tensor]) -> Tensor:
    """The left half is the largest power of two below the number of shards."""
    if len(values) == 1:
        return values[0]
    half = 1 << (len(values) - 1).bit_length() - 1
    return by_definition(values[:half]) + by_definition(values[half:])


def part_of(values: list[Tensor], held: range) -> TreeSum:
    tree = TreeSum(len(values))
    for shard in held:
        tree.add(shard, {"value": values[shard].clone()})
    return tree


@pytest.mark.parametrize("number", range(1, MOST))
def test_the_sum_is_that_of_one_tree_whoever_holds_the_shards(number: int) -> None:
    values, random = shards(number), Random(number)
    expected = by_definition(values)
    for holders in range(1, number + 1):
        parts = [part_of(values, range(r * number // holders, (r + 1) * number // holders)) for r in range(holders)]
        random.shuffle(parts)
        total = TreeSum(number)
        for part in parts:
            for node, sums in part.nodes.items():
                total.add_node(node, sums)
        assert torch.equal(total.total()["value"], expected), holders


def test_another_order_has_other_bits() -> None:
    """Or the tests here would prove nothing."""
    values = shards(7)
    assert not torch.equal(torch.stack(values).sum(dim=0), by_definition(values))


@pytest.mark.parametrize(
    ("held", "number", "nodes"),
    [
        (range(1), 1, [(0, 0)]),
        (range(4), 4, [(2, 0)]),
        (range(2, 4), 4, [(1, 1)]),
        (range(1, 3), 4, [(0, 1), (0, 2)]),
        (range(3, 6), 6, [(0, 3), (2, 1)]),  # shards 4 and 5 have no sibling: they are the sum of its parent, too
    ],
)
def test_what_is_left_when_some_shards_are_added_up(held: range, number: int, nodes: list[tuple[int, int]]) -> None:
    assert nodes_of(held, number) == nodes


def test_sums_wait_in_one_place_a_level() -> None:
    tree, values = TreeSum(16), shards(16)
    for shard, value in enumerate(values):
        tree.add(shard, {"value": value})
        assert len(tree.nodes) <= 4


def test_a_tensor_that_some_shards_lack_counts_as_zero() -> None:
    tree = TreeSum(2)
    tree.add(0, {"both": torch.ones(1)})
    tree.add(1, {"both": torch.ones(1), "second": torch.ones(1)})
    assert tree.total() == {"both": torch.full((1,), 2.0), "second": torch.ones(1)}
