"""The layouts of edges: what arrives in which format."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bllpipe.engines.ports import in_passes, layout_of, rounds_of
from bllpipe.messages import Alpha, Passes, Round
from tests.unit.engines.test_job import job_of


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8"])
def test_only_a_block_that_computes_in_bf16_reads_it(tmp_path: Path, wire: str, compute: str) -> None:
    job, store = job_of(tmp_path, "blocks=2", f"precision.wire={wire}", f"precision.compute={compute}")
    for number in range(2):
        store.set_shape(number, (4, 8, 8))
    found = {edge.kind: layout_of(job, store, edge).received for edge in job.topology.edges()}
    both = wire == compute == "bf16"
    assert found == {
        "alpha": torch.bfloat16 if both else torch.float32,
        "target": torch.float32,
        "stats": torch.float32,
    }


def test_rings_and_messages_are_those_of_shards(tmp_path: Path) -> None:
    """A shard more than the ring holds would wait for ever where one thread sends and receives in turn."""
    settings = ("blocks=2", "data.batch_size=32", "feedback.lag=3", "backend.ring=2")
    job, store = job_of(tmp_path, *settings, "shards=4")
    for number in range(2):
        store.set_shape(number, (4, 8, 8))
    layouts = [layout_of(job, store, edge) for edge in job.topology.edges()]
    assert {layout.edge.kind: layout.ring for layout in layouts} == {"alpha": 8, "target": 8, "stats": 12}
    assert {layout.max_batch for layout in layouts} == {8}
    for edge in job.topology.edges():
        rounds = list(islice(rounds_of(job, edge), 5))
        assert [(entry.step, entry.shard, entry.size) for entry in rounds] == [
            *[(0, s, 8) for s in range(4)],
            (1, 0, 8),
        ]


def test_images_come_in_shards() -> None:
    x, entry = torch.arange(6.0), Round("evaluate", 0, size=6)
    source = iter([Alpha(entry, x), Alpha(entry, x)])
    each = tuple(range(shard, shard + 1) for shard in range(4))
    port = in_passes(SimpleNamespace(recv=lambda: next(source)), Passes(4, each, range(4)))
    found = [port.recv() for _ in range(6)]
    assert [message.round.shard for message in found] == [0, 1, 2] * 2, "a small test batch has fewer shards"
    assert torch.equal(torch.cat([message.alpha_BCHW for message in found]), torch.cat([x, x]))
    assert all(message.votes_BK is None for message in found)


def test_with_norm_sync_the_shards_of_a_replica_go_together() -> None:
    source = iter([Alpha(Round("train", 0, size=8), torch.arange(4.0, 8))])
    port = in_passes(SimpleNamespace(recv=lambda: next(source)), Passes(4, (range(2), range(2, 4)), range(1, 2)))
    found = port.recv()
    assert found.round == Round("train", 0, size=4, shard=2)
    assert found.alpha_BCHW.tolist() == [4.0, 5.0, 6.0, 7.0]
