"""Blocks that lie sharded over their replicas learn as whole ones do, and their checkpoints are the same files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bllpipe.checkpoint import open_checkpoint
from bllpipe.engines.ranks import sharding_of
from bllpipe.engines.sharding import Sharding
from bllpipe.errors import ConfigError, WireError
from bllpipe.models.units import Layer, Stretch, Unit, units_from_modules
from bllpipe.utils.slices import is_sliced, own_part
from tests.support import jobs
from tests.support.same_bits import metrics_without_timing, state_digest
from tests.support.spawning import run_ranks

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


class Scaled(nn.Linear):
    """A layer with a scalar, which cannot be sliced."""

    def __init__(self) -> None:
        super().__init__(3, 5)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


def times_weight(module: nn.Module, x: Tensor) -> Tensor:
    return x * module.get_parameter("weight")


def without_the_other(rank: int) -> list[str]:
    """What is said of a network without modules, and of a replica that is gone."""
    sharding = Sharding("slices of block 0", [1 - rank], dist.new_group([0, 1]))
    exported = Stretch({"weight": nn.Parameter(torch.ones(4))}, times_weight, times_weight, has_layers=False)
    with pytest.raises(ConfigError) as refused:
        sharding.build([Unit("all", (Layer("all", lambda: exported),), is_built=True)], seed=0)
    torch.manual_seed(0)
    layer = Scaled()
    (unit,) = units_from_modules({"0": layer})
    segment = sharding.build([unit], seed=0)
    sharding.run_units(segment)
    found = dict(segment.named_parameters())
    assert own_part(found["0.weight"]).shape == ((3, 3), (2, 3))[rank] and not is_sliced(found["0.scale"])
    torch.manual_seed(0)
    torch.testing.assert_close(segment(torch.ones(2, 3)), Scaled()(torch.ones(2, 3)), rtol=0, atol=0)
    if rank == 1:
        return [str(refused.value)]
    with pytest.raises(WireError) as gone:
        sharding.gather(found["0.weight"])
    return [str(refused.value), str(gone.value)]


def test_what_cannot_be_gathered_is_named() -> None:
    (refused, gone), (same,) = run_ranks(without_the_other, 2)
    assert refused == same
    assert refused.startswith("sharding is fsdp, but the block that ends with all was traced by torch.export, which")
    assert gone == "slices of block 0: rank 1 is gone: the connection was closed"


def test_sharding_is_refused_on_a_gpu() -> None:
    job: Any = SimpleNamespace(config=SimpleNamespace(sharding="fsdp"))
    with pytest.raises(ConfigError, match="rank 1 has a GPU; use --set device=cpu, or --set sharding=none"):
        sharding_of(job, 1, object(), torch.device("cuda", 0))
    assert sharding_of(job, 2, None, torch.device("cpu")) is None, "a block with one replica"
