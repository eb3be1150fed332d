"""How many ranks every block gets, and in which order they are placed on the nodes: arithmetic with counted operations
and bytes, so that it finds the same on every machine.

A step of a block takes its operations, times the largest share of the shards that a replica has, ceil(S / R) / S:
the slowest block sets the rate. Bytes count where they leave a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from bllpipe.errors import ConfigError
from bllpipe.topology import Order, Topology


@dataclass(frozen=True)
class BlockCounts:
    """A block as it is counted: operations for one image, and bytes of a training step. ``alpha``: activations to the
    next block; ``target``: messages of the feedback; ``stats``: those of one pass to it; ``gradient``: of all that the
    block trains."""

    operations: float
    alpha: int = 0
    target: int = 0
    stats: int = 0
    gradient: int = 0


def share_ranks(operations: Sequence[float], num_ranks: int, shards: int) -> tuple[int, ...]:
    """The replicas of every block, at most ``shards`` each and ``num_ranks`` in all, for which the slowest block is
    fastest. Ranks that cannot make it faster go where a replica has the most operations."""
    replicas = [1] * len(operations)
    while True:
        seconds = [each * -(-shards // number) for each, number in zip(operations, replicas, strict=True)]
        slowest = max(range(len(replicas)), key=lambda block: seconds[block])
        share = -(-shards // replicas[slowest])  # shards of its busiest replica
        more = -(-shards // (share - 1)) - replicas[slowest] if share > 1 else num_ranks
        if sum(replicas) + more > num_ranks:
            break
        replicas[slowest] += more
    for _ in range(num_ranks - sum(replicas)):
        free = [block for block, number in enumerate(replicas) if number < shards]
        replicas[max(free, key=lambda block: operations[block] / replicas[block])] += 1
    return tuple(replicas)


def possible_shards(batch_size: int) -> list[int]:
    """The numbers of equal shards of a batch, of at least two images each."""
    return [1, *(each for each in range(2, batch_size // 2 + 1) if batch_size % each == 0)]


def most_ranks(num_blocks: int, batch_size: int, shards: int | None) -> int:
    """As many ranks of blocks as have a shard each; ``shards`` None: of the smallest shards."""
    return num_blocks * (shards or possible_shards(batch_size)[-1])


def replicas_and_shards(
    operations: Sequence[float], num_ranks: int, batch_size: int, shards: int | None
) -> tuple[tuple[int, ...], int]:
    """The replicas of every block, ``num_ranks`` in all, and the number of shards.

    Unless it is given, the number of shards is the largest number of replicas, or the next one that divides the batch;
    of several possible ones that for which the slowest block is fastest, and of equally fast ones the smallest.

    Raises ConfigError if there are more ranks than shards for them.
    """
    blocks, possible = len(operations), [shards] if shards else possible_shards(batch_size)
    if num_ranks > (most := most_ranks(blocks, batch_size, shards)):
        found = f"shards is {shards}" if shards else f"{batch_size} images have at most {most // blocks} equal shards"
        raise ConfigError(
            f"replicas is auto for {num_ranks} ranks and {blocks} block{'s' if blocks > 1 else ''}, but {found}, and "
            f"every replica needs one; use at most {most} ranks, and those of the feedback, or larger batches"
            f"{' or more shards' if shards else ''}"
        )
    found_by_shards = {}
    for number in possible:
        if num_ranks <= blocks * number:
            replicas = share_ranks(operations, num_ranks, number)
            if shards or number == min(size for size in possible if size >= max(replicas)):
                found_by_shards[number] = replicas
    best = min(found_by_shards, key=lambda number: _slowest(operations, found_by_shards[number], number))
    return found_by_shards[best], best


def _slowest(operations: Sequence[float], replicas: Sequence[int], shards: int) -> float:
    return max(each * -(-shards // number) / shards for each, number in zip(operations, replicas, strict=True))


def crossing_bytes(layout: Topology, counts: Sequence[BlockCounts], nodes: Sequence[int]) -> float:
    """The bytes of a training step between ranks of different nodes; ``nodes`` has the node of every rank."""
    total = 0.0
    for edge in layout.edges():
        if nodes[edge.src] != nodes[edge.dst]:
            of = counts[layout.block_of(edge.dst if edge.kind == "target" else edge.src)]
            share = len(layout.shards_on(edge)) / layout.num_shards
            match edge.kind:
                case "alpha":
                    total += of.alpha * share
                case "target":
                    total += of.target * share
                case "stats":
                    total += of.stats * len(layout.passes_of(edge.src).own)
    for block, of in enumerate(counts):
        ranks = layout.ranks_of(block)
        crossing = sum(nodes[src] != nodes[dst] for src, dst in permutations(ranks, 2))
        total += crossing * 2 * of.gradient / len(ranks)  # a chunk to be added up, and the sum of the own one
    return total


def best_order(layout: Topology, counts: Sequence[BlockCounts], nodes: Sequence[int]) -> tuple[Order, float, float]:
    """The order of ranks with fewer bytes between nodes, these bytes, and those of the other order."""
    orders: tuple[Order, ...] = ("block", "pipeline")  # block, if both have as many
    found = {order: crossing_bytes(replace(layout, order=order), counts, nodes) for order in orders}
    best = min(orders, key=lambda order: found[order])
    return best, found[best], max(found.values())
