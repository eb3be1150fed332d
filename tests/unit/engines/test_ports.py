"""The layouts of edges: what arrives in which format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bllpipe.engines.ports import layout_of
from tests.unit.engines.test_job import job_of


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("wire", ["fp32", "bf16"])
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
