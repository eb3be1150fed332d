"""The GPU benchmark without a GPU: what it would run, what its meters make of their readings, and a rehearsal."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_cases import COMPILED_BATCHES, cases
from benchmarks.gpu_meters import EnergyMeter, busy_share, operations_per_image, peak_of
from bllpipe.config import load_config

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.sh"))
REHEARSAL = ["--device", "cpu", "--quick", "--models", "resnet18", "--batches", "8"]


def test_the_most_telling_case_comes_first_and_all_can_be_launched() -> None:
    found = cases(gpu.parser().parse_args([]))
    assert [case.name for case in found[:2]] == ["resnet50 B=128 bp eager", "resnet50 B=128 bp compiled"]
    assert {case.batch for case in found if "compiled" in case.variant} == set(COMPILED_BATCHES)
    assert {case.batch for case in found} == {64, 128, 256, 512, 1024}
    for case in found:
        config = load_config(None, list(case.settings))
        assert (config.device, config.precision.compute, config.data.batch_size) == ("cuda", "bf16", case.batch)
        assert case.steps % config.log.every_steps == 0


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-40GB", 312e12), ("T4", None)],
)
def test_the_peak_is_that_of_the_card(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak


@pytest.mark.parametrize(
    ("intervals", "share"),
    [
        ([], None),
        ([(0.0, 10.0)], 1.0),
        ([(0.0, 4.0), (6.0, 10.0)], 0.8),
        ([(0.0, 1.0), (5.0, 8.0), (6.0, 7.0), (7.5, 10.0)], 1.0),
        ([(0.0, 6.0), (9.0, 10.0)], 0.4),
    ],
)
def test_kernels_side_by_side_count_once(intervals: list[tuple[float, float]], share: float | None) -> None:
    assert busy_share(intervals) == (None if share is None else pytest.approx(share))


def test_watts_are_those_of_the_training() -> None:
    rest, work = [(0.05 * tick, 5.0 * tick) for tick in range(20)], []
    for tick in range(1, 21):
        work.append((0.95 + 0.05 * tick, 95.0 + 30.0 * tick))
    meter = EnergyMeter(None, [*rest, *work])
    assert meter.watts(0.5) == pytest.approx(600.0)
    assert meter.watts(60.0) is None


def test_without_nvml_nothing_is_sampled() -> None:
    meter = EnergyMeter(None)
    with meter.sampling():
        pass
    assert meter.samples == [] and meter.watts(0.0) is None


def test_operations_are_those_of_the_step() -> None:
    """All blocks count; twice the width is nearly four times the work."""
    small = ["model.width=2", "device=cpu"]
    whole = operations_per_image(load_config(None, [*small, "method=bp", "engine=single"]))
    blocks = operations_per_image(load_config(None, [*small, "engine=sequential", "objective.head=gap"]))
    wide = operations_per_image(load_config(None, ["model.width=4", "device=cpu", "method=bp", "engine=single"]))
    assert 0.8 * whole < blocks < whole, "no gradient leaves a block; small heads add little"
    assert 3 < wide / whole < 4


def test_a_rehearsal_measures_every_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variants = ["--variants", "bp compiled", "bll captured", "bll streams", "--repeats", "2"]
    assert gpu.main([*REHEARSAL, *variants, "--json", str(tmp_path / "gpu.json")]) == 0
    text, record = capsys.readouterr().out, json.loads((tmp_path / "gpu.json").read_text())
    assert "these figures say nothing of a GPU" in text and "resnet18 B=8 bll streams" in text
    results: list[dict[str, Any]] = record["results"]
    assert [each["variant"] for each in results] == ["bp compiled", "bll captured", "bll streams"]
    assert all(each["images_per_second"]["n"] == 4 and each["images_per_second"]["least"] > 0 for each in results)
    assert results[0]["over_compiled_bp"] == 1.0 and results[2]["over_compiled_bp"] > 0
    assert all(each["of_bf16_peak"] is None and each["joules_per_image"] is None for each in results)
    assert record["settings"]["left_out"] == []


def test_what_is_not_measured_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([*REHEARSAL, "--variants", "bp eager", "--budget", "0"]) == 0
    assert "left out, as 0 s are spent: resnet18 B=8 bp eager [1]" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_rehearse(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "there is no GPU; rehearse with --device cpu --quick" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_can_be_read(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], timeout=60).returncode == 0
    assert script.stat().st_mode & 0o111, "it can be started"
