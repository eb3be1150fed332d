"""Ranks shared out among blocks and nodes: small cases by hand, the best ones against all others."""

from __future__ import annotations

from itertools import product

import pytest

from bllpipe.errors import ConfigError
from bllpipe.models.allocation import (
    BlockCounts,
    best_order,
    crossing_bytes,
    most_ranks,
    possible_shards,
    replicas_and_shards,
    share_ranks,
)
from bllpipe.topology import Topology

OPERATIONS = [(1.0, 1.0), (5.0, 1.0, 2.0), (1.0, 7.0, 7.0), (3.0, 3.0, 3.0, 2.9)]


@pytest.mark.parametrize("operations", OPERATIONS, ids=str)
@pytest.mark.parametrize("shards", [1, 3, 4, 8])
def test_no_other_replicas_are_faster(operations: tuple[float, ...], shards: int) -> None:
    blocks = len(operations)
    for ranks in range(blocks, min(blocks * shards, 9) + 1):
        every = [each for each in product(range(1, shards + 1), repeat=blocks) if sum(each) <= ranks]

        def seconds(replicas: tuple[int, ...]) -> float:
            return max(each * -(-shards // number) for each, number in zip(operations, replicas, strict=True))

        found = share_ranks(operations, ranks, shards)
        assert sum(found) == ranks and max(found) <= shards and min(found) >= 1
        assert seconds(found) == min(map(seconds, every))


def test_ranks_that_make_nothing_faster_go_where_most_is_left() -> None:
    assert share_ranks([6.0, 4.0, 1.0], 4, shards=4) == (2, 1, 1)
    assert share_ranks([6.0, 6.0], 5, shards=4) == (3, 2), "of four shards three replicas have two at most, as two do"


@pytest.mark.parametrize(
    ("operations", "ranks", "batch", "shards", "expected"),
    [
        ((1.0, 1.0), 2, 64, None, ((1, 1), 1)),
        ((1.0, 1.0), 4, 64, None, ((2, 2), 2)),
        ((3.0, 1.0), 4, 64, None, ((2, 2), 2)),  # as fast as 3 and 1 in four shards, as 3 does not divide 64
        ((3.0, 1.0), 4, 48, None, ((3, 1), 3)),
        ((3.0, 1.0), 4, 64, 2, ((2, 2), 2)),  # the shards of the run are kept
        ((3.0, 1.0), 3, 64, 8, ((2, 1), 8)),
        ((1.0,), 7, 64, None, ((7,), 8)),
    ],
)
def test_shards_are_the_largest_number_of_replicas_that_divides_the_batch(
    operations: tuple[float, ...],
    ranks: int,
    batch: int,
    shards: int | None,
    expected: tuple[tuple[int, ...], int],
) -> None:
    assert replicas_and_shards(operations, ranks, batch, shards) == expected


def test_every_number_of_ranks_up_to_the_most_is_possible() -> None:
    assert possible_shards(12) == [1, 2, 3, 4, 6]
    assert possible_shards(7) == possible_shards(1) == [1]
    for ranks in range(2, most_ranks(2, 12, None) + 1):
        replicas, shards = replicas_and_shards([2.0, 1.0], ranks, 12, None)
        assert sum(replicas) == ranks and max(replicas) <= shards and 12 % shards == 0


@pytest.mark.parametrize(
    ("ranks", "shards", "message"),
    [
        (13, None, r"for 13 ranks and 2 blocks, but 12 images have at most 6 equal shards, .* use at most 12 ranks"),
        (7, 3, r"for 7 ranks and 2 blocks, but shards is 3, and every replica needs one; .* or more shards"),
    ],
)
def test_more_ranks_than_shards_are_refused(ranks: int, shards: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replicas_and_shards([1.0, 1.0], ranks, 12, shards)


def test_bytes_between_nodes_by_hand() -> None:
    """Two blocks of two replicas and two shards, two nodes of two ranks and the feedback on the second."""
    counts = [BlockCounts(1, alpha=100, target=10, stats=1, gradient=1000), BlockCounts(1, 7, 20, 2, 4000)]
    layout, nodes = Topology(2, num_shards=2, replicas=(2, 2)), [0, 0, 1, 1, 1]
    # by block: all alphas, and the messages of block 0 with the feedback; the sums stay on a node
    assert crossing_bytes(layout, counts, nodes) == 100 + 10 + 2 * 1
    # by pipeline: no alpha, half of the messages with the feedback, both sums
    sums = 2 * (2 * 1000 / 2 + 2 * 4000 / 2)
    expected = (10 + 20) / 2 + 1 + 2 + sums
    assert best_order(layout, counts, nodes) == ("block", 112, expected)
    assert best_order(layout, [BlockCounts(1, alpha=10**6), BlockCounts(1)], nodes) == ("pipeline", 0, 10**6)
    assert best_order(layout, counts, [0] * 5) == ("block", 0, 0)


def test_uneven_replicas_over_uneven_nodes() -> None:
    counts = [BlockCounts(1, alpha=120, gradient=10), BlockCounts(1, gradient=30)]
    layout = Topology(2, num_shards=6, replicas=(2, 3))
    # rank 0 and 1 hold block 0; shards 2 and 3 of block 1 come from both; ranks 3, 4 and the feedback are elsewhere
    by_block = 120 * 4 / 6 + 4 * 2 * 30 / 3  # shards 2 to 5; of three replicas one is alone
    assert crossing_bytes(layout, counts, [0, 0, 0, 1, 1, 1]) == by_block
