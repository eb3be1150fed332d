"""Ranks, roles and edges, against what was drawn by hand."""

import re
from itertools import product
from typing import get_args

import pytest

from bllpipe.errors import ConfigError
from bllpipe.messages import Passes, Round
from bllpipe.topology import Edge, Order, Topology, num_feedback_ranks

SIZES = [1, 2, 4, 8]

BY_HAND = {
    1: "target 1->0 stats 0->1",
    2: "alpha 0->1 target 2->0 target 2->1 stats 0->2 stats 1->2",
    4: (
        "alpha 0->1 alpha 1->2 alpha 2->3 "
        "target 4->0 target 4->1 target 4->2 target 4->3 "
        "stats 0->4 stats 1->4 stats 2->4 stats 3->4"
    ),
    8: (
        "alpha 0->1 alpha 1->2 alpha 2->3 alpha 3->4 alpha 4->5 alpha 5->6 alpha 6->7 "
        "target 8->0 target 8->1 target 8->2 target 8->3 target 8->4 target 8->5 target 8->6 target 8->7 "
        "stats 0->8 stats 1->8 stats 2->8 stats 3->8 stats 4->8 stats 5->8 stats 6->8 stats 7->8"
    ),
}


@pytest.mark.parametrize("num_blocks", SIZES)
def test_edges_and_their_order(num_blocks: int) -> None:
    assert " ".join(str(edge) for edge in Topology(num_blocks).edges()) == BY_HAND[num_blocks]


@pytest.mark.parametrize("num_blocks", [*SIZES, 3, 31])
def test_edges_are_unique_and_3p_minus_1(num_blocks: int) -> None:
    edges = Topology(num_blocks).edges()
    assert len(edges) == len(set(edges)) == 3 * num_blocks - 1


@pytest.mark.parametrize("num_blocks", SIZES)
def test_every_edge_joins_two_ranks_of_the_world(num_blocks: int) -> None:
    topology = Topology(num_blocks)
    ranks = range(topology.world_size)
    assert all(edge.src in ranks and edge.dst in ranks and edge.src != edge.dst for edge in topology.edges())


@pytest.mark.parametrize(
    ("num_blocks", "roles"),
    [
        (1, ["block 0", "feedback"]),
        (2, ["block 0", "block 1", "feedback"]),
        (4, ["block 0", "block 1", "block 2", "block 3", "feedback"]),
        (8, [*(f"block {rank}" for rank in (0, 1, 2, 3, 4, 5, 6, 7)), "feedback"]),
    ],
)
def test_ranks_and_roles(num_blocks: int, roles: list[str]) -> None:
    topology = Topology(num_blocks)
    assert topology.world_size == len(roles)
    assert topology.feedback_ranks == range(roles.index("feedback"), len(roles))
    assert [topology.role(rank) for rank in range(topology.world_size)] == roles
    assert [rank for rank, role in enumerate(roles) if role != "feedback"] == list(topology.block_ranks)


def test_edges_of_one_block() -> None:
    topology = Topology(4)
    assert topology.alpha_edge(1) == Edge("alpha", 1, 2)
    assert topology.target_edge(1) == Edge("target", 4, 1)
    assert topology.stats_edge(1) == Edge("stats", 1, 4)


@pytest.mark.parametrize("num_blocks", SIZES)
def test_only_the_last_block_sends_no_alpha(num_blocks: int) -> None:
    topology = Topology(num_blocks)
    assert [block for block in topology.block_ranks if topology.alpha_edge(block) is None] == [num_blocks - 1]


def test_edge_as_text() -> None:
    assert str(Edge("stats", 3, 4)) == "stats 3->4"


@pytest.mark.parametrize("num_blocks", SIZES)
def test_right_world_size_is_accepted(num_blocks: int) -> None:
    Topology(num_blocks).check_world_size(num_blocks + 1)


@pytest.mark.parametrize(
    ("num_blocks", "found"), [pair for pair in product(SIZES, range(12)) if pair[1] != pair[0] + 1]
)
def test_any_other_world_size_is_refused(num_blocks: int, found: int) -> None:
    with pytest.raises(ConfigError, match=f"need {num_blocks + 1} ranks, but torchrun started {found};"):
        Topology(num_blocks).check_world_size(found)


@pytest.mark.parametrize(
    ("num_blocks", "found", "message"),
    [
        (
            4,
            4,
            "4 blocks and 1 feedback rank need 5 ranks, but torchrun started 4; "
            "use --nproc_per_node=5, or --set blocks=3",
        ),
        (
            1,
            3,
            "1 block and 1 feedback rank need 2 ranks, but torchrun started 3; "
            "use --nproc_per_node=2, or --set blocks=2",
        ),
        (
            4,
            1,
            "4 blocks and 1 feedback rank need 5 ranks, but torchrun started 1; use --nproc_per_node=5",
        ),
    ],
)
def test_wrong_world_size_says_what_to_type(num_blocks: int, found: int, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        Topology(num_blocks).check_world_size(found)


def edges_of(*replicas: int, shards: int, joins: bool = False) -> str:
    topology = Topology(len(replicas), num_shards=shards, replicas=replicas, joins_shards=joins)
    return " ".join(str(edge) for edge in topology.edges())


def test_alpha_goes_from_the_owner_of_a_shard_to_its_owner_in_the_next_block() -> None:
    assert edges_of(2, 3, shards=4) == (
        "alpha 0->2 alpha 0->3 alpha 1->4 "
        "target 5->0 target 5->1 target 5->2 target 5->3 target 5->4 "
        "stats 0->5 stats 1->5 stats 2->5 stats 3->5 stats 4->5"
    )
    assert edges_of(1, 2, shards=2) == (
        "alpha 0->1 alpha 0->2 target 3->0 target 3->1 target 3->2 stats 0->3 stats 1->3 stats 2->3"
    )
    assert edges_of(1, 1, shards=4) == BY_HAND[2], "shards alone need no more edges"


def test_replicas_own_consecutive_shards() -> None:
    topology = Topology(3, num_shards=4, replicas=(1, 3, 2))
    assert topology.world_size == 7
    assert [topology.shards_of(rank) for rank in topology.block_ranks] == [
        *(range(4), range(1), range(1, 2), range(2, 4)),
        *(range(2), range(2, 4)),
    ]
    assert topology.shards_on(Edge("alpha", 0, 3)) == range(2, 4)
    assert topology.shards_on(Edge("target", 6, 5)) == range(2, 4)
    assert topology.shards_on(Edge("stats", 1, 6)) == range(1)
    assert [topology.owner(1, shard) for shard in range(4)] == [1, 2, 3, 3]


def test_roles_of_replicas_and_parts_of_checkpoints() -> None:
    topology = Topology(2, num_shards=2, replicas=(2, 1))
    roles = ["block 0 replica 0", "block 0 replica 1", "block 1", "feedback"]
    assert [topology.role(rank) for rank in range(4)] == roles
    assert [topology.part_role(rank) for rank in range(4)] == ["block 0", "block 0", "block 1", "feedback"]
    assert [topology.part_of(rank) for rank in range(4)] == [0, 0, 1, 2]
    assert topology.part_ranks == (0, 2, 3)
    assert topology.tested_ranks == topology.lead_ranks == (0, 2)
    assert [rank for rank in range(4) if topology.is_lead(rank)] == [0, 2, 3]
    assert topology.num_parts == 3


def test_a_pipeline_is_placed_after_the_other() -> None:
    layout = Topology(3, num_shards=4, replicas=(2, 1, 3), order="pipeline")
    seats = [(0, 0), (1, 0), (2, 0), (2, 1), (0, 1), (2, 2)]
    assert list(layout.seats) == seats, "by the shards that they begin with: 0, 1/3, 1/2, 2/3 of them"
    assert [layout.ranks_of(block) for block in range(3)] == [(0, 4), (1,), (2, 3, 5)]
    assert (layout.lead_ranks, layout.part_ranks) == ((0, 1, 2), (0, 1, 2, 6)), "parts in the order of blocks"
    assert [layout.role(rank) for rank in (1, 3, 6)] == ["block 1", "block 2 replica 1", "feedback"]
    even = Topology(2, num_shards=2, replicas=(2, 2), order="pipeline")
    alphas = [str(edge) for edge in even.edges() if edge.kind == "alpha"]
    assert alphas == ["alpha 0->1", "alpha 2->3"], "neighbours"


@pytest.mark.parametrize("replicas", [(1, 3), (2, 5), (4, 2, 3)])
def test_the_order_of_ranks_changes_nothing_but_their_numbers(replicas: tuple[int, ...]) -> None:
    by_block, by_pipeline = (Topology(len(replicas), num_shards=5, replicas=replicas, order=o) for o in get_args(Order))
    there = {by_block.seats.index(seat): rank for rank, seat in enumerate(by_pipeline.seats)}
    there[by_block.world_size - 1] = by_pipeline.world_size - 1
    edges = [Edge(edge.kind, there[edge.src], there[edge.dst]) for edge in by_block.edges()]
    assert sorted(map(str, edges)) == sorted(map(str, by_pipeline.edges()))
    for rank in by_block.block_ranks:
        assert by_block.shards_of(rank) == by_pipeline.shards_of(there[rank])
        assert by_block.role(rank) == by_pipeline.role(there[rank])


@pytest.mark.parametrize(
    ("replicas", "ranks", "expected"),
    [
        ((1, 1, 1, 1), 1, [[0, 1, 2, 3]]),
        ((1, 1, 1, 1), 2, [[0, 1], [2, 3]]),
        ((1, 1, 1, 1), 4, [[0], [1], [2], [3]]),
        ((6, 1, 1, 4), 2, [[0], [1, 2, 3]]),
        ((1, 1, 90), 3, [[0], [1], [2]]),
        ((90, 1, 1), 3, [[0], [1], [2]]),
        ((90, 90, 1), 2, [[0], [1, 2]]),
        ((1, 1, 30, 30, 1, 1), 3, [[0, 1, 2], [3], [4, 5]]),
    ],
)
def test_feedback_loops_are_divided_among_feedback_ranks(
    replicas: tuple[int, ...], ranks: int, expected: list[list[int]]
) -> None:
    layout = Topology(len(replicas), num_feedback_ranks=ranks, num_shards=max(replicas), replicas=replicas)
    assert [layout.loops_of(rank) for rank in layout.feedback_ranks] == expected
    for block in range(len(replicas)):
        ends = {layout.target_edge(block).src, layout.stats_edge(block).dst}
        assert ends == {layout.feedback_of(block)} and layout.is_feedback(layout.feedback_of(block))


def test_two_feedback_ranks_are_the_last_two_and_two_parts_of_a_checkpoint() -> None:
    layout = Topology(2, num_feedback_ranks=2, num_shards=2, replicas=(2, 1))
    assert (layout.world_size, layout.feedback_ranks) == (5, range(3, 5))
    assert [layout.role(rank) for rank in layout.feedback_ranks] == ["feedback 0", "feedback 1"]
    assert [layout.part_role(rank) for rank in layout.feedback_ranks] == ["feedback 0", "feedback 1"]
    assert (layout.num_parts, layout.part_ranks) == (4, (0, 2, 3, 4))
    assert [layout.part_of(rank) for rank in range(5)] == [0, 0, 1, 2, 3]
    assert layout.digest_ranks == (0, 2, 3), "the digest is that of one feedback rank"
    with pytest.raises(ConfigError, match="2 blocks with 2 . 1 replicas and 2 feedback ranks need 5 ranks, but .* 4"):
        layout.check_world_size(4)


@pytest.mark.parametrize(
    ("ranks", "blocks", "expected"), [(1, 1, 1), (64, 4, 1), (65, 4, 2), (128, 4, 2), (129, 4, 3), (500, 2, 2)]
)
def test_one_feedback_rank_for_64_ranks_of_blocks(ranks: int, blocks: int, expected: int) -> None:
    assert num_feedback_ranks(ranks, blocks) == expected


def test_passes_are_shards_or_all_shards_of_a_replica() -> None:
    shards = Topology(2, num_shards=4, replicas=(1, 3))
    assert shards.passes_of(3) == Passes(4, (range(1), range(1, 2), range(2, 3), range(3, 4)), range(2, 4))
    joined = Topology(2, num_shards=4, replicas=(1, 3), joins_shards=True)
    assert joined.passes_of(3) == Passes(4, (range(1), range(1, 2), range(2, 4)), range(2, 3))
    entry = Round("train", 0, size=8)
    assert [(number, each.shard, each.size) for number, each in shards.passes_of(3).own_of(entry)] == [
        (2, 2, 2),
        (3, 3, 2),
    ]
    assert [(number, each.shard, each.size) for number, each in joined.passes_of(3).own_of(entry)] == [(2, 2, 4)]


def test_a_small_test_batch_has_no_pass_in_some_replicas() -> None:
    passes = Topology(1, num_shards=4, replicas=(2,)).passes_of(1)
    entry = Round("evaluate", 0, size=2)
    assert passes.number(entry) == 2
    assert passes.own_of(entry) == []


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            3,
            "2 blocks with 2 + 3 replicas and 1 feedback rank need 6 ranks, but torchrun started 3; use "
            "--nproc_per_node=6 on one node, or as many over all, or --set replicas=1",
        ),
        (
            4,
            "2 blocks with 2 + 3 replicas and 1 feedback rank need 6 ranks, but torchrun started 4; use "
            "--nproc_per_node=6 on one node, or as many over all",
        ),
    ],
)
def test_wrong_world_size_with_replicas(found: int, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        Topology(2, num_shards=4, replicas=(2, 3)).check_world_size(found)


@pytest.mark.parametrize("replicas", [(1, 3), (2, 5), (7, 4), (9, 1, 6)])
def test_every_shard_of_many_is_on_the_edge_between_its_owners(replicas: tuple[int, ...]) -> None:
    layout = Topology(len(replicas), num_shards=9, replicas=replicas)
    for edge in layout.edges():
        block = layout.block_of(edge.dst if edge.kind == "target" else edge.src)
        on_it = [shard for shard in range(9) if layout.edge(edge.kind, block, shard) == edge]
        assert list(layout.shards_on(edge)) == on_it
        for rank in {edge.src, edge.dst} & set(layout.block_ranks):
            assert all(layout.owner(layout.block_of(rank), shard) == rank for shard in on_it)
            assert set(on_it) <= set(layout.shards_of(rank))
