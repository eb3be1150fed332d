"""What is measured of a network, written down and read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bllpipe.config import Config, load_config
from bllpipe.data.catalog import PUBLISHED
from bllpipe.data.registry import data_spec
from bllpipe.errors import ConfigError
from bllpipe.models.registry import network_units
from bllpipe.models.units import Segment
from bllpipe.tools.planning.profile import Profile, Timing, load_profile, save_profile, settings_of
from bllpipe.tools.planning.profiler import (
    UnitBenchmark,
    head_bytes,
    kept_bytes,
    measure,
    present_device,
    unit_bytes,
)

SMALL = ["model.width=4", "data.batch_size=8", "device=cpu"]
OWN = ["model.name=tests.support.networks.planning:small", "data.name=digits", "data.batch_size=4", "device=cpu"]
PARTS = ("forward", "backward", "backward_without_input", "backward_of_input", "update", "head")


def profile_of(config: Config) -> Profile:
    calls: list[tuple[str, int, int | None]] = []

    def note_progress(what: str, done: int = 0, total: int | None = None) -> None:
        calls.append((what, done, total))

    found = measure(config, data_spec(config), 2, note_progress, parts=[2])
    what, done, total = calls[-1]
    assert what.startswith("repetition 4 of 4, 2 images, ")  # 2 to warm up
    assert total == 4 * 2 * len(found.units) and done == total - 1
    return found


@pytest.fixture(scope="module")
def profile() -> Profile:
    return profile_of(load_config(None, SMALL))


def test_every_unit_is_measured(profile: Profile) -> None:
    assert profile.names == [f"layer{stage}.{index}" for stage in (1, 2, 3, 4) for index in (0, 1)]
    for unit in profile.units:
        assert all(getattr(unit, part).median > 0 for part in PARTS)
        assert unit.cost().backward >= max(unit.cost().backward_without_input, unit.cost().backward_of_input)
    assert profile.steps_per_epoch == 1442 // 8
    assert [unit.output_bytes for unit in profile.parts[2]] == [unit.output_bytes // 4 for unit in profile.units]
    assert profile.inputs(1.0).parts[2][0].forward == profile.parts[2][0].forward.median


def test_sizes(profile: Profile) -> None:
    """layer1.0 with the stem: 9 x 4 weights, two normalisations and the two convolutions of 9 x 4 x 4."""
    first, last = profile.units[0], profile.units[-1]
    assert first.parameters == 36 + 8 + 2 * (144 + 8)
    assert first.output_bytes == 8 * 4 * 8 * 8 * 4
    assert last.output_bytes == 8 * 10 * 4
    whole = Segment(network_units(load_config(None, SMALL).model, (1, 8, 8), 10, seed=0), seed=0)
    assert sum(unit.parameters for unit in profile.units) == sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        ["precision.compute=bf16", "precision.wire=bf16", "optimizer.clip_norm=1"],
        ["method=predsim", "objective.keep_weight=0.1", "optimizer.name=adamw"],
        ["precision.wire=int8"],
    ],
)
def test_other_settings(settings: list[str]) -> None:
    config = load_config(None, [*SMALL, *settings])
    width = {"fp32": 4, "bf16": 2, "int8": 1}[config.precision.wire]
    assert profile_of(config).units[0].output_bytes == 8 * 4 * 8 * 8 * width


def test_a_network_of_ones_own_that_begins_in_place_and_ends_without_parameters() -> None:
    found = profile_of(load_config(None, OWN))
    assert found.names == ["0", "1", "2", "3"]
    assert [unit.parameters for unit in found.units] == [60, 0, 550, 0]


def test_measuring_moves_no_weight() -> None:
    config = load_config(None, SMALL)
    unit = network_units(config.model, (1, 8, 8), 10, seed=0)[0]
    segment = Segment([unit], seed=0)
    before = {name: value.clone() for name, value in segment.named_parameters()}
    probe = UnitBenchmark(segment, torch.randn(8, 1, 8, 8), config, num_classes=10, is_last=False)
    head = {name: value.clone() for name, value in probe.block.head.named_parameters()}
    probe.sample()
    for then, module in ((before, segment), (head, probe.block.head)):
        assert all(torch.equal(value, then[name]) for name, value in module.named_parameters())


def test_memory_by_hand() -> None:
    """3x3 convolutions of 1 to 6 and 6 to 10 channels without normalisation, four images of 8x8 pixels, float32."""
    config = load_config(None, OWN)
    units = network_units(config.model, (1, 8, 8), 10, seed=0)
    probe = UnitBenchmark(Segment([units[2]], 0), torch.randn(4, 6, 6, 6), config, num_classes=10, is_last=False)
    weights, output = 550 * 4, 4 * 10 * 4 * 4 * 4
    assert unit_bytes(probe.block, probe.optimizer, probe.x) == 3 * weights + output
    head, of_alpha = (10 * 4 * 4 * 10 + 10) * 4, output
    counted = head_bytes(probe.block, probe.optimizer, probe.alpha, probe.target)
    assert 3 * head + of_alpha <= counted <= 3 * head + of_alpha + 8192  # and some channel means and scores


def test_what_backward_keeps_is_counted_once() -> None:
    x = torch.randn(1000, requires_grad=True)
    assert kept_bytes(lambda: [(x * x) * x.view(10, 100).flatten()], []) == 12000  # x, x squared, the result


def test_a_profile_is_read_back(profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    save_profile(profile, file)
    assert load_profile(file, load_config(None, [*SMALL, "epochs=3", "blocks=2"])) == profile


def test_a_profile_of_another_config(profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    save_profile(profile, file)
    with pytest.raises(ConfigError, match="measured with another configuration:\n  data.batch_size: 8 then, 16 now"):
        load_profile(file, load_config(None, ["model.width=4", "data.batch_size=16"]))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "bllpipe-profile-0"}', '{"format": "bllpipe-profile-1"}'])
def test_what_is_no_profile(text: str, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="is not a profile: .*; use the name of a new file to measure"):
        load_profile(file, Config())


def test_a_profile_with_a_part_missing(profile: Profile, tmp_path: Path) -> None:
    record = profile.to_json()
    del record["units"][3]["head"]
    (tmp_path / "profile.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="is not a profile: KeyError"):
        load_profile(tmp_path / "profile.json", load_config(None, SMALL))


def test_median_and_quartiles() -> None:
    assert Timing.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Timing(3.0, 2.0, 4.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="device is cuda, but there is no GPU; use --set device=cpu, or --profile"):
        present_device(load_config(None, ["device=cuda"]))


def test_well_known_data_are_not_needed() -> None:
    assert data_spec(load_config(None, ["data.name=cifar100"])) is PUBLISHED["cifar100"]
    spec = data_spec(load_config(None, ["data.name=synthetic", "data.image_size=16", "data.synthetic_classes=3"]))
    assert (spec.image_shape, spec.num_classes) == ((3, 16, 16), 3)


def test_settings_hold_what_the_figures_depend_on() -> None:
    assert {"model.name", "data.batch_size", "objective.head", "precision.wire"} <= settings_of(Config()).keys()
