"""``blocks: balanced``: one cut for all machines, written out before anyone starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from bllpipe import launch
from bllpipe.config import Config, load_config
from bllpipe.data.catalog import PUBLISHED
from bllpipe.engines import Options, topology
from bllpipe.engines.job import JobStore, agree
from bllpipe.errors import ConfigError
from bllpipe.launch import check_plan
from bllpipe.learn.balanced_cut import count_operations, with_balanced_cut
from bllpipe.models.partition import Link, UnitCost, bounds, local_cost
from tests.support.jobs import summary

CIFAR, DIGITS = PUBLISHED["cifar10"].image_shape, PUBLISHED["digits"].image_shape
RESNET50 = ["model.name=resnet50", "model.width=64", "data.name=cifar10"]
OWN = ["model.name=tests.support.networks.planning:small"]


@pytest.fixture(scope="module")
def counted() -> dict[str, UnitCost]:
    return count_operations(load_config(None, RESNET50), CIFAR, 10)


def test_operations_of_a_bottleneck_by_hand(counted: dict[str, UnitCost]) -> None:
    """layer2.1: 1x1 of 512 to 128 channels, 3x3 of 128, 1x1 to 512, at 16x16 positions; two FLOPs a product."""
    unit, images = counted["layer2.1"], 2
    forward = images * 2 * 16 * 16 * (512 * 128 + 9 * 128 * 128 + 128 * 512)
    assert unit.forward == forward
    assert unit.backward == 2 * forward
    assert unit.backward - unit.backward_without_input == images * 2 * 16 * 16 * 512 * 128
    assert unit.head == images * 2 * 512 * 2 * 2 * 10 * 3  # linear on a pool of 2x2


def slowest(counted: dict[str, UnitCost], config: Config) -> float:
    cost = local_cost(list(counted.values()), Link())
    assert not isinstance(config.cuts, str)
    return max(cost(first, end) for first, end in bounds(list(counted), config.cuts))


def test_resnet50_in_four_is_as_even_as_equal_numbers_of_units(counted: dict[str, UnitCost]) -> None:
    config = with_balanced_cut(load_config(None, [*RESNET50, "blocks=balanced"]), CIFAR, 10)
    assert config.blocks == ["layer2.0", "layer3.0", "layer3.4"]  # 4/4/4/4, as in the paper
    assert slowest(counted, config) <= slowest(counted, load_config(None, RESNET50))
    total = sum(unit.forward for unit in counted.values())
    units = list(counted.values())
    blocks = bounds(list(counted), config.blocks)
    shares = [round(100 * sum(unit.forward for unit in units[first:end]) / total) for first, end in blocks]
    assert shares == [26, 26, 22, 26]


def test_resnet50_in_six_is_better_than_equal_numbers_of_units(counted: dict[str, UnitCost]) -> None:
    found = with_balanced_cut(load_config(None, [*RESNET50, "blocks=balanced 6"]), CIFAR, 10)
    assert found.num_blocks == 6
    assert slowest(counted, found) <= slowest(counted, load_config(None, [*RESNET50, "blocks=6"]))


def test_heads_have_their_weight() -> None:
    """Similarity matching convolves alpha with 3x3 over all channels, which costs more than a bottleneck."""
    settings = ["model.name=resnet50", "model.width=16", "blocks=balanced 4"]
    found = [
        with_balanced_cut(load_config(None, [*settings, f"method={method}"]), DIGITS, 10)
        for method in ("bll", "predsim")
    ]
    assert found[0].blocks != found[1].blocks


def test_stages_of_a_pipeline_have_no_heads() -> None:
    settings = ["method=bp", "engine=gpipe", "blocks=balanced 2"]
    config = load_config(None, settings)
    assert topology(config).world_size == 2
    assert with_balanced_cut(config, DIGITS, 10).blocks == ["layer2.1"]


def test_counting_leaves_no_trace() -> None:
    """The same cut again, wherever the random numbers are, and they stay there; no tensor is left without contents."""
    config = load_config(None, ["blocks=balanced 3", "model.width=4"])
    state = torch.get_rng_state()
    first = with_balanced_cut(config, DIGITS, 10)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(torch.initial_seed() + 1)
    assert with_balanced_cut(config, DIGITS, 10) == first
    assert torch.zeros(2).tolist() == [0.0, 0.0]


def test_what_is_not_balanced_stays_as_it_is() -> None:
    for overrides in (["blocks=3"], ["blocks=[2, layer3.0]"], ["blocks=balanced", "method=bp", "engine=single"]):
        config = load_config(None, overrides)
        assert with_balanced_cut(config, DIGITS, 10) is config
    assert with_balanced_cut(load_config(None, ["blocks=balanced 1", "model.width=4"]), DIGITS, 10).blocks == 1


def test_a_network_of_ones_own() -> None:
    config = load_config(None, [*OWN, "blocks=balanced 2"])
    assert with_balanced_cut(config, DIGITS, 10).blocks in (["0"], ["1"])


def test_initial_values_may_depend_on_values() -> None:
    """torch's trunc_normal_ draws again what lies outside: ConvNeXt, Swin and vision transformers begin with it."""
    config = load_config(None, ["model.name=tests.support.networks.planning:truncated", "blocks=balanced 2"])
    assert with_balanced_cut(config, DIGITS, 10).blocks == ["1"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["blocks=balanced 5"], "blocks=5, but the network has only 4 units"),
        (
            ["blocks=balanced 4"],
            "but one of them would be without parameters, .* use --set blocks='balanced 3' or less",
        ),
        (["blocks=balanced 2", "model.args.looks=true"], "operations of unit 1 cannot be counted .* --set blocks=2"),
    ],
)
def test_what_cannot_be_balanced(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_balanced_cut(load_config(None, [*OWN, *overrides]), DIGITS, 10)


@pytest.mark.parametrize("blocks", ["even", "balanced 0", "balanced -1", "balanced four", "balanced4", "balanced  4"])
def test_other_words(blocks: str) -> None:
    with pytest.raises(ConfigError, match=r"^blocks is .*; expected a number of blocks, a list of cuts .*'balanced 8'"):
        load_config(None, [f"blocks={blocks}"])


def test_replicas_are_not_balanced() -> None:
    with pytest.raises(ConfigError, match="engine ddp has no cuts.*use --set blocks=4"):
        load_config(None, ["method=bp", "engine=ddp", "blocks=balanced"])


def test_the_number_of_blocks_is_known_without_torch() -> None:
    program = (
        "import sys; from bllpipe.config import load_config; from bllpipe.engines import topology;"
        "from bllpipe.launch import check_plan; config = load_config(None, ['blocks=balanced 8']);"
        "check_plan(config); assert topology(config).world_size == 9; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
    assert load_config(None, ["blocks=balanced"]).num_blocks == 4


def test_too_many_blocks_are_refused_before_the_start() -> None:
    with pytest.raises(ConfigError, match="the network has only 8 units"):
        check_plan(load_config(None, ["blocks=balanced 9"]))


def test_the_deciding_rank_tells_the_others(tmp_path: Path) -> None:
    config, store = load_config(None, ["blocks=balanced 2", "model.width=4"]), dist.HashStore()
    options = Options(run_dir=str(tmp_path / "run"))
    jobs = [agree(config, options, JobStore(store), store, spec, attempt=0) for spec in (PUBLISHED["digits"], None)]
    assert jobs[0].config == jobs[1].config == with_balanced_cut(config, DIGITS, 10)
    assert jobs[0].topology == jobs[1].topology == topology(config)


def test_a_run_writes_its_cut_down_and_goes_on(tmp_path: Path) -> None:
    def words(*settings: str) -> list[str]:
        small = ("engine=sequential", "model.width=4", "data.batch_size=256", "epochs=1", "evaluate.every_epochs=0")
        given = [word for setting in (*small, *settings) for word in ("--set", setting)]
        return [*given, "--run-dir", str(tmp_path / "run"), "--resume", "auto"]

    assert launch.main(words("blocks=balanced 2", "stop_at=2")) == 0
    written = load_config(str(tmp_path / "run" / "config.yaml")).blocks
    assert written == with_balanced_cut(load_config(None, ["model.width=4", "blocks=balanced 2"]), DIGITS, 10).blocks
    assert launch.main(words("blocks=balanced 2")) == 0
    assert len(summary(tmp_path / "run")["block_accuracy"]) == 2


def test_frozen_units_have_no_operations_for_gradients_of_their_weights() -> None:
    """They were refused: "One of the differentiated Tensors does not require grad"."""
    frozen = count_operations(
        load_config(None, ["model.name=tests.support.networks.planning:half_frozen"]), (3, 8, 8), 5
    )
    unit = next(iter(frozen.values()))
    assert unit.backward == unit.backward_of_input == unit.forward > 0 and unit.backward_without_input == 0
