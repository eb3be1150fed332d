"""Sums over the shards of a batch in one fixed binary tree.

Floating-point addition is not associative, so the order of additions is a part of the result. Here it depends on the
number of shards alone, not on which process holds which shard:

    shard   0   1   2   3   4   5   6         number of shards: 7
             \\ /     \\ /     \\ /    |
              +       +       +     |         level 1
               \\     /         \\   /
                  +               +           level 2
                    \\           /
                          +                   level 3: the total

A node is a level and an index: its leaves are the shards from index * 2**level on. A node whose sibling has no shard
has the sum of its parent. A process adds up what it holds; what is left in the end are the nodes that another process
must add.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

Sums = dict[str, Tensor]  # tensors by name; a name that one of two sums lacks counts as zero there
Node = tuple[int, int]  # level and index


class TreeSum:
    """The sum of what ``num_shards`` shards contribute. At most one sum a level waits for its sibling."""

    def __init__(self, num_shards: int) -> None:
        self.num_shards = num_shards
        self.nodes: dict[Node, Sums] = {}

    def add(self, shard: int, sums: Sums) -> None:
        """Adds the contribution of one shard; its tensors may be overwritten."""
        self.add_node((0, shard), sums)

    def add_node(self, node: Node, sums: Sums) -> None:
        """Adds the sum of a node, of which no shard was added before."""
        level, index = node
        while index or 1 << level < self.num_shards:
            sibling = level, index ^ 1
            if sibling in self.nodes:
                other = self.nodes.pop(sibling)
                sums = _added(sums, other) if index % 2 == 0 else _added(other, sums)
            elif (index ^ 1) << level < self.num_shards:
                break  # until the sibling comes
            level, index = level + 1, index // 2
        self.nodes[level, index] = sums

    def total(self) -> Sums:
        """The sum over all shards; they must all have been added."""
        (total,) = self.nodes.values()
        return total


def nodes_of(shards: range, num_shards: int) -> list[Node]:
    """The nodes that are left when the contributions of consecutive ``shards`` alone are added up."""
    tree = TreeSum(num_shards)
    for shard in shards:
        tree.add(shard, {})
    return sorted(tree.nodes)


def _added(left: Sums, right: Mapping[str, Tensor]) -> Sums:
    """Their sum, in the memory of ``left``."""
    for name, value in right.items():
        left[name] = left[name].add_(value) if name in left else value
    return left
