"""Sums over the replicas of a block, and BatchNorm over all of them, in real processes over gloo."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from bllpipe.distributed.replica_sum import ReplicaSum
from bllpipe.errors import WireError
from bllpipe.learn.sync_norm import synchronize_norms
from bllpipe.messages import Passes, Target
from bllpipe.topology import Topology
from bllpipe.utils.tree_sum import Sums, TreeSum
from tests.support.spawning import run_ranks
from tests.unit.learn import test_shards
from tests.unit.learn.test_shards import batch, made

pytestmark = pytest.mark.ranks
REPLICAS, SHARDS, SIZE = 3, 4, test_shards.SIZE
HEAD, STEPS = ("objective.head=conv",), 4
SHAPES = {"gradient.a": (5, 3), "gradient.b": (7,), "term.pred": ()}


def contribution(shard: int) -> Sums:
    draws = torch.Generator().manual_seed(shard)
    found = {name: torch.randn(shape, generator=draws) for name, shape in SHAPES.items()}
    if shard != 2:
        del found["gradient.b"]  # a parameter that one shard alone uses
    return {**found, "correct": torch.tensor(shard), "move.double": torch.randn(2, generator=draws).double()}


def opened(rank: int, joins: bool = False, **more: Any) -> ReplicaSum:
    layout = Topology(1, num_shards=SHARDS, replicas=(REPLICAS,), joins_shards=joins)
    held = [layout.passes_of(other) for other in range(REPLICAS)]
    optional = more.pop(
        "optional", {"gradient.a": torch.zeros(5, 3), "gradient.b": torch.zeros(7), "gradient.c": torch.zeros(1)}
    )
    store: Any = dist.distributed_c10d._get_default_store()
    return ReplicaSum("sum of block 0", range(REPLICAS), rank, held, None, store, optional, **more)


def add_up(rank: int) -> list[Any]:
    """The sums of a batch, of a small test batch, and of one that only two replicas have, ordered and native."""
    found: list[Any] = []
    for ordered in (True, False):
        port = opened(rank, ordered=ordered)
        port._name += str(ordered)
        for number in (4, 2, 4):
            tree = TreeSum(number)
            for shard in range(rank * SHARDS // REPLICAS, min(number, (rank + 1) * SHARDS // REPLICAS)):
                tree.add(shard, contribution(shard))
            found.append({name: value.tolist() for name, value in port.total(tree).items()})
        assert port.sent_bytes > 0
    return found


def expected(number: int) -> dict[str, Any]:
    tree = TreeSum(number)
    for shard in range(number):
        tree.add(shard, contribution(shard))
    return {name: value.tolist() for name, value in tree.total().items()}


def test_the_ordered_sum_is_that_of_one_process() -> None:
    first, *others = run_ranks(add_up, REPLICAS)
    assert first[:3] == [expected(4), expected(2), expected(4)]
    assert all([other[0], other[2]] == [expected(4)] * 2 for other in others)
    assert [other[1] for other in others] == [expected(2), {}], "shards 2 and 3 are not in the small batch"
    for name, value in first[3].items():  # the backend's own order
        torch.testing.assert_close(torch.tensor(value), torch.tensor(expected(4)[name]))
    assert all(other[3] == first[3] for other in others)


def differ(rank: int) -> str:
    tree = TreeSum(SHARDS)
    for shard in Topology(1, num_shards=SHARDS, replicas=(REPLICAS,)).shards_of(rank):
        tree.add(shard, {"term.other" if rank == 1 else "term.pred": torch.zeros(())})
    port = opened(rank)
    if rank != 1:
        return "waits for the one that differs"
    port._store.set("sum of block 0/0/0", "the digest of replica 0")
    with pytest.raises(WireError) as caught:
        port.total(tree)
    return str(caught.value)


def test_replicas_with_other_tensors_are_named_before_anything_is_sent() -> None:
    message = run_ranks(differ, REPLICAS)[1]
    assert message.startswith("sum of block 0: replica 1 has other tensors to add up than replica 0; expected the same")


def lose(rank: int, ordered: bool) -> str:
    """Replica 2 is gone after the first sum; the others tell what they see."""
    port, shards = opened(rank, ordered=ordered), Topology(1, num_shards=SHARDS, replicas=(REPLICAS,)).shards_of(rank)
    for _ in range(2 if rank < 2 else 1):
        tree = TreeSum(SHARDS)
        for shard in shards:
            tree.add(shard, {"term.pred": torch.ones(())})
        try:
            port.total(tree)
        except WireError as error:
            return str(error)
    return "gone"


@pytest.mark.parametrize("ordered", [True, False])
def test_a_replica_that_is_gone_is_noticed_and_named(ordered: bool) -> None:
    *others, _ = run_ranks(lose, REPLICAS, ordered)
    named = "rank 2" if ordered else "rank 0 or rank 1 or rank 2"
    assert f"sum of block 0: {named} is gone: the connection was closed" in others


def test_norm_sync_learns_as_one_process_does_on_the_whole_batch() -> None:
    """P2: 1e-10 in float64, over several steps, with BatchNorm in the block and in its head."""
    whole = made("normed", *HEAD)
    outcomes = [test_shards.train(whole, step, 1) for step in range(STEPS)]
    for state, losses in run_ranks(train_in_sync, REPLICAS):
        for name, value in whole.learner.state().items():
            torch.testing.assert_close(torch.tensor(state[name], dtype=value.dtype), value, rtol=0, atol=1e-10)
        assert losses == pytest.approx([float(outcome.terms["pred"]) for outcome in outcomes], rel=1e-10)


def train_in_sync(rank: int) -> tuple[dict[str, Any], list[float]]:
    block = made("normed", *HEAD, "shards=4", "norm=sync", "data.batch_size=12")
    port = opened(rank, joins=True, optional=block.learner.trainable())
    for module in (block.segment, block.local):
        synchronize_norms(module, port.add_up)
    passes: Passes = Topology(1, num_shards=SHARDS, replicas=(REPLICAS,), joins_shards=True).passes_of(rank)
    losses = []
    for step in range(STEPS):
        x, target = batch(step)
        tree, own = TreeSum(REPLICAS), passes.shards[rank]
        images = slice(own.start * SIZE // SHARDS, own.stop * SIZE // SHARDS)
        part = Target(target.round, *(each[images] for each in (target.beta_BC, target.known_B, target.label_B)))
        alpha = block.forward(x[images])
        tree.add(rank, block.learn(alpha, part, len(part.label_B) / SIZE))
        losses.append(float(block.step(port.total(tree), step).terms["pred"]))
    return {name: value.tolist() for name, value in block.learner.state().items()}, losses
