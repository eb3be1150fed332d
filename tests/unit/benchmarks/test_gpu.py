"""The GPU benchmark without a GPU: what it would run, what its meters make of their readings, and a rehearsal."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from benchmarks import gpu, gpu_report
from benchmarks.gpu_cases import BATCHES, CAPTURED, COMPILED, MODELS, VARIANTS, Scale, groups, make_case
from benchmarks.gpu_meters import EnergyMeter, kernel_share, operations_per_image, peak_of
from benchmarks.gpu_report import Ledger
from benchmarks.gpu_worker import Answer
from bllpipe.config import Config, load_config
from bllpipe.training.run_schedule import RunSchedule
from tests.support import forks

REPOSITORY = Path(__file__).parents[3]
SCRIPTS = sorted((REPOSITORY / "benchmarks").glob("*.sh"))
REHEARSAL = ["--device", "cpu", "--quick", "--models", "resnet18", "--batches", "128"]


def test_the_most_telling_cases_come_first_and_all_can_be_launched() -> None:
    found = groups(Scale(), MODELS, BATCHES, list(VARIANTS))
    assert [case.name for case in found[0]][:2] == ["resnet50 B=128 bp captured", "resnet50 B=128 bll one graph"]
    compiled = [any(case.is_compiled for case in group) for group in found]
    assert compiled == sorted(compiled), "whatever is compiled comes last"
    assert {case.batch for group in found for case in group} == {16, 32, 64, 128, 256, 512}
    for case in [case for group in found for case in group]:
        config = load_config(None, list(case.settings))
        assert (config.device, config.precision.compute, config.data.batch_size) == ("cuda", "bf16", case.batch)
        assert config.log.every_steps == 100 and case.steps % 100 == 0, "the same lines on both sides"


def test_no_case_is_tested_or_written() -> None:
    """Not even at its end: a test would be compiled, and captured."""
    (case,) = groups(Scale("cpu", quick=True), ["resnet18"], [128], ["bll one graph"])[0]
    plan = RunSchedule.of(load_config(None, [*case.settings, f"steps={case.steps}"]), 64, 16)
    assert {entry.phase for entry in plan.rounds()} == {"train", "end"}


def test_both_sides_are_compiled_alike() -> None:
    ways = {side: set() for side in ("bp", "bll")}  # type: dict[str, set[tuple[str, ...]]]
    for name, settings in VARIANTS.items():
        ways[name.split()[0]].add(tuple(each for each in settings if each in (COMPILED, CAPTURED)))
    assert ways["bp"] == {(), (CAPTURED,), (COMPILED,), (COMPILED, CAPTURED)}
    assert {(), (CAPTURED,), (COMPILED, CAPTURED)} <= ways["bll"]


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
    assert kernel_share(intervals) == (None if share is None else pytest.approx(share))


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


def ledger_of(path: Path | None, **rates: Sequence[float]) -> Ledger:
    """What is known when each variant has had these rates, one a repetition."""
    ledger = Ledger(None if path is None else str(path), {"quick": True}, {"gpus": ["NVIDIA H100 80GB HBM3"]})
    known = {"loss": 1.0, "peak_memory_bytes": 2**30, "reserved_bytes": 2**31, "left_bytes": 0, "watts": 500.0}
    for name, found in rates.items():
        case = make_case(Scale(), "resnet50", 128, name.replace("_", " "))
        for rate in found:
            ledger.add(case, Answer({"rates": [rate], **known}, seconds=1.0))
    return ledger


def test_bll_is_compared_with_the_fastest_of_backpropagation() -> None:
    ledger = ledger_of(None, bp_captured=[90.0, 110.0], bp_eager=[50.0], bll_one_graph=[99.0, 132.0])
    found = {each["variant"]: each for each in ledger.results()}
    assert found["bll one graph"]["fastest_bp"] == "bp captured"
    assert found["bll one graph"]["over_fastest_bp"] == pytest.approx(1.15), "of pairs, each in one repetition"
    ledger.add(
        make_case(Scale(), "resnet50", 128, "bp compiled captured"), Answer(ledger.found[next(iter(ledger.found))][1])
    )
    assert {each["fastest_bp"] for each in ledger.results()} == {"bp compiled captured"}
    assert "bp compiled captured" in ledger.tables()


def test_one_graph_is_compared_with_many() -> None:
    ledger = ledger_of(None, bll_one_graph=[120.0, 110.0], bll_blocks=[100.0], bll_blocks_compiled=[50.0])
    (found,) = ledger.one_graph()
    assert found["ratio"] == pytest.approx(1.2) and found["against"] == "resnet50 B=128 bll blocks"
    assert "capture=true against capture=blocks" in ledger.tables()


def test_operations_are_counted_once_a_network_and_side(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, counted = ledger_of(None, bp_captured=[100.0], bp_eager=[50.0], bll_one_graph=[70.0]), list[str]()

    def count(config: Config) -> float:
        counted.append(config.method)
        return 1e9

    monkeypatch.setattr(gpu_report, "operations_per_image", count)
    ledger.count_operations()
    ledger.count_operations()
    assert counted == ["bp", "bll"]
    assert ledger.results()[0]["of_bf16_peak"] == pytest.approx(100.0 * 1e9 / 989e12)


def test_every_measurement_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    ledger = ledger_of(path, bp_captured=[100.0])
    assert [each["variant"] for each in json.loads(path.read_text())["results"]] == ["bp captured"]
    ledger.add(make_case(Scale(), "resnet50", 128, "bp eager"), Answer(error="out of memory", details="at line 7"))
    (failed,) = json.loads(path.read_text())["settings"]["failed"]
    assert failed["case"] == "resnet50 B=128 bp eager" and failed["error"] == "out of memory"
    assert "failed: resnet50 B=128 bp eager: out of memory" in ledger.tables()


def test_a_rehearsal_measures_every_variant_but_the_one_that_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And tells what failed, once: a case that has failed is not tried again."""
    variants = ["--variants", "bp captured", "bll blocks", "bll one graph", "--repeats", "2", "--spoil", "bll blocks"]
    assert gpu.main([*REHEARSAL, *variants, "--json", str(tmp_path / "gpu.json")]) == 1
    text, record = capsys.readouterr().out, json.loads((tmp_path / "gpu.json").read_text())
    assert "these figures say nothing of a GPU" in text and "spoiled-on-purpose.npz does not exist" in text
    results: list[dict[str, Any]] = record["results"]
    assert [each["variant"] for each in results] == ["bp captured", "bll one graph"]
    assert all(each["images_per_second"]["n"] == 4 and each["images_per_second"]["least"] > 0 for each in results)
    assert results[0]["over_fastest_bp"] == 1.0 and results[1]["over_fastest_bp"] > 0
    assert all(each["of_bf16_peak"] is None and each["joules_per_image"] is None for each in results)
    assert all(each["operations_per_image"] > 0 for each in results)
    assert [each["case"] for each in record["settings"]["failed"]] == ["resnet18 B=8 bll blocks"]
    assert record["settings"]["left_out"] == [] and record["environment"]["torch"] == torch.__version__


def test_what_takes_too_long_is_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variants = ["--variants", "bp eager", "--case-limit", "0.05"]
    assert gpu.main([*REHEARSAL, *variants, "--json", str(tmp_path / "gpu.json")]) == 1
    assert "resnet18 B=8 bp eager: stopped after 0 s, its limit" in capsys.readouterr().out


def test_what_is_not_measured_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([*REHEARSAL, "--variants", "bp eager", "--budget", "0", "--repeats", "1"]) == 0
    assert "left out, as the time was spent: resnet18 B=8 bp eager [1]" in capsys.readouterr().out


def test_what_was_measured_survives_a_kill(tmp_path: Path) -> None:
    """SIGKILL in the middle: the file is whole, and no process is left."""
    path = tmp_path / "gpu.json"
    words = [*REHEARSAL, "--variants", "bp eager", "bll eager", "--repeats", "1000", "--json", str(path)]
    started = forks.popen([sys.executable, "-m", "benchmarks.gpu", *words], cwd=REPOSITORY)
    try:
        end = time.monotonic() + 240
        while not path.exists() or len(json.loads(path.read_text())["results"]) < 2:
            assert started.poll() is None and time.monotonic() < end, "it measured nothing"
            time.sleep(0.1)
        children = psutil.Process(started.pid).children(recursive=True)
    finally:
        started.kill()
        started.wait()
    results = json.loads(path.read_text())["results"]
    assert [each["variant"] for each in results] == ["bp eager", "bll eager"]
    assert all(each["images_per_second"]["least"] > 0 for each in results)
    assert children and not psutil.wait_procs(children, timeout=60)[1], "its worker ends with it"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_rehearse(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "there is no GPU; rehearse with --device cpu --quick" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_can_be_read(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], timeout=60).returncode == 0
    assert script.stat().st_mode & 0o111, "it can be started"
