"""Blocks that lie sharded over their replicas learn as whole ones do, and their checkpoints are the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bllpipe.checkpoint import open_checkpoint
from tests.support import jobs
from tests.support.same_bits import metrics_without_timing, state_digest

pytestmark = pytest.mark.ranks
WHOLE, HALF = "step-00000008", "step-00000004"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of tests/support/sharded_runs.py, by name: one start of four ranks for all."""
    root = tmp_path_factory.mktemp("sharding")
    jobs.succeed(jobs.ranks(4, [str(root)], module="tests.support.sharded_runs"))
    return root


def same_up_to_rounding(one: Path, other: Path, step: str = WHOLE) -> None:
    ours, theirs = (open_checkpoint(run / "checkpoints" / step).tensors() for run in (one, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_sharded_block_learns_as_a_whole_one(runs: Path) -> None:
    """Up to rounding: gradients are added in another order, over replicas and then over passes."""
    for step in (HALF, WHOLE):
        same_up_to_rounding(runs / "fsdp", runs / "native", step)
    found, expected = (metrics_without_timing(runs / name) for name in ("fsdp", "native"))
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for line, like in zip(found, expected, strict=True):
        for key in {"loss", "gradient_norm"} & line.keys():
            assert line[key] == pytest.approx(like[key], rel=1e-3)


def test_its_checkpoint_is_the_same_kind_of_file(runs: Path) -> None:
    ours, theirs = (
        {path.name: path.stat().st_size for path in (runs / name / "checkpoints" / WHOLE).glob("*.safetensors")}
        for name in ("fsdp", "native")
    )
    assert ours == theirs
    summaries = [jobs.summary(runs / name) for name in ("fsdp", "native")]
    assert summaries[0]["parameters"] == summaries[1]["parameters"], "counted as whole"
    assert any(edge.startswith("slices of block 0") for edge in summaries[0]["waiting"][0])


def test_the_same_replicas_repeat_their_bits(runs: Path) -> None:
    """Also after a resume, from which on units are computed again in the backward pass."""
    assert state_digest(runs / "again") == state_digest(runs / "fsdp")
    assert metrics_without_timing(runs / "again") == metrics_without_timing(runs / "fsdp")


@pytest.mark.parametrize("name", ["fsdp then native", "native then fsdp"])
def test_a_run_is_resumed_with_the_other_kind(runs: Path, name: str) -> None:
    same_up_to_rounding(runs / name, runs / "fsdp")


def test_recomputation_changes_no_bit_of_data_parallelism(runs: Path) -> None:
    assert state_digest(runs / "ddp units") == state_digest(runs / "ddp none")
