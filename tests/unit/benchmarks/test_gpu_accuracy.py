"""The accuracy benchmark for a GPU: how long its runs may be, what they learn with, and what is known of each."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_first, gpu_second
from benchmarks.gpu_accuracy import Probe, accuracies_of, bll_recipe, cut_short
from benchmarks.gpu_first import best_setting, gpu_tests, outcomes, went_well
from benchmarks.gpu_second import BP, COMMON, OF_SET, affordable, cost_of, runs
from bllpipe.config import load_config
from bllpipe.learn.balanced_cut import with_balanced_cut

CONFIGS = Path(__file__).parents[3] / "configs"


def test_the_most_telling_runs_come_first_and_all_can_be_launched() -> None:
    found = runs(bll_recipe())
    assert [run.name for run in found] == [
        "resnet18 bp s0",
        "resnet18 bll 4 blocks s0",
        "resnet18 bp s1",
        "resnet18 bll 4 blocks s1",
        "resnet18 bll 8 blocks s0",
        "resnet18 bll 8 blocks s1",
        "resnet50 bp s0",
        "resnet50 bll 4 blocks s0",
    ]
    for run in found:
        for of_set in OF_SET.values():
            data = ("data.path=some.npz", "device=cpu")
            config = load_config(None, [*COMMON, *of_set, *data, *run.settings("true")])
            assert config.optimizer.lr == run.recipe.lr and config.seed == run.seed
            assert config.schedule.name == "onecycle" and config.schedule.warmup_steps == 0, "no epoch of warm-up"


def test_epochs_are_those_that_all_runs_can_have() -> None:
    found = Probe("true", step_seconds=0.01, test_seconds=1.0, begin_seconds=5.0)
    assert cost_of(found, 195) == pytest.approx(1.95 + 0.5)
    assert affordable(100.0, [(2.0, 5.0), (3.0, 5.0)]) == 18
    assert affordable(9.0, [(2.0, 5.0), (3.0, 5.0)]) == 0


@pytest.mark.parametrize(("more", "lr"), [((), 0.2), (("optimizer.lr=0.07",), 0.07)])
def test_bll_has_a_head_that_bears_its_rate(more: tuple[str, ...], lr: float) -> None:
    recipe = bll_recipe(more)
    assert "objective.head=strided" in recipe.note and recipe.lr == lr and BP.lr == 0.2


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_it_learns_with_the_config_that_we_ship(model: str) -> None:
    """ResNet-18's is the very run; that of ResNet-50 is shorter here, and has larger batches."""
    (run,) = (each for each in runs(bll_recipe()) if each.name == f"{model} bll 4 blocks s0")
    size = ("model.width=64", "epochs=30", "data.path=some.npz")
    ours = load_config(None, [*COMMON, *OF_SET["cifar10"], *size, *run.settings("true")])
    shipped = with_balanced_cut(load_config(str(CONFIGS / f"cifar10_{model}.yaml")), (3, 32, 32), 10)
    assert shipped.objective == ours.objective and shipped.model == ours.model and shipped.blocks == ours.blocks
    if model == "resnet18":
        eight = with_balanced_cut(replace(shipped, blocks="balanced 8"), (3, 32, 32), 10)
        (run,) = (each for each in runs(bll_recipe()) if each.name == "resnet18 bll 8 blocks s1")
        assert load_config(None, list(run.settings("true"))).blocks == eight.blocks
        assert (shipped.optimizer, shipped.epochs, shipped.data.augment) == (ours.optimizer, 30, ours.data.augment)
        assert (shipped.schedule, shipped.data.batch_size) == (ours.schedule, 256)


def line(step: int, actor: str, accuracy: float | None = None) -> str:
    phase = {"phase": "train"} if accuracy is None else {"phase": "evaluate", "accuracy": accuracy}
    return json.dumps({"step": step, "actor": actor, **phase}) + "\n"


def test_a_run_that_was_cut_short_has_its_last_whole_test(tmp_path: Path) -> None:
    tests = line(20, "block 1", 0.5) + line(20, "block 0", 0.4) + line(40, "block 0", 0.6)
    (tmp_path / "metrics.jsonl").write_text(line(10, "block 0") + tests + line(50, "block 0") + '{"step": 60, "pha')
    assert accuracies_of(tmp_path) == [{"step": 20, "block_accuracy": [0.4, 0.5]}]
    assert cut_short(tmp_path) == {"test_accuracy": 0.5, "tests": accuracies_of(tmp_path), "steps": 50}
    assert cut_short(tmp_path / "nothing") == {"test_accuracy": None, "tests": [], "steps": 0}


@pytest.mark.parametrize(
    ("works", "setting"),
    [
        ({"false": True, "blocks": True, "true": True}, "gpu.capture=true"),
        ({"false": True, "blocks": True, "true": False}, "gpu.capture=blocks"),
        ({"false": True, "blocks": False}, "gpu.capture=false"),
        ({}, "gpu.capture=false"),
    ],
)
def test_the_best_setting_is_the_most_captured_that_works(works: dict[str, bool], setting: str) -> None:
    assert best_setting({name: {"works": each} for name, each in works.items()}) == setting


def test_outcomes_are_counted_of_tests_that_were_interrupted_too() -> None:
    text = (
        "[gw0] [  2%] PASSED tests/gpu/test_a.py::test_one \n"
        "[gw1] [  4%] FAILED tests/gpu/test_a.py::test_two[x] \n"
        "[gw1] [ 6%] PASSED tests/gpu/test_b.py::test_three \n!!! KeyboardInterrupt !!!\n"
    )
    assert outcomes(text) == {"passed": 2, "failed": 1, "names": ["tests/gpu/test_a.py::test_two[x]"]}


def test_tests_that_are_cut_short_have_told_what_failed(tmp_path: Path) -> None:
    """One of them never ends. What the other two did is in the log, with the traceback of the one that failed."""
    texts = {"good": "pass", "bad": "assert [1, 2] == [1, 3]", "endless": "import time; time.sleep(600)"}
    for name, text in texts.items():
        (tmp_path / f"test_{name}.py").write_text(f"def test_{name}():\n    {text}\n")
    done: dict[str, Any] = {}
    until = 20.0
    while done.get("passed") != 1 or done.get("failed") != 1:  # a machine that is busy may need longer
        assert until < 200
        done, until = gpu_tests(tmp_path / "log", 3, time.monotonic() + until, str(tmp_path)), 2 * until
    assert done["exit_code"] != 0 and [name.rpartition("/")[2] for name in done["names"]] == ["test_bad.py::test_bad"]
    assert "assert [1, 2] == [1, 3]" in (tmp_path / "log").read_text()


def test_every_part_says_whether_it_went_well() -> None:
    known = {
        "versions": {"torch": "2.11"},
        "smoke": {"true": {"works": True}, "blocks": {"works": False}},
        "tests": {"exit_code": 0},
        "compiled": {"works": True},
        "rates": {"error": "RuntimeError: odd"},
    }
    expected = {"versions": True, "smoke": False, "tests": True, "compiled": True, "rates": False}
    assert went_well(known) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_both_say_how_to_rehearse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_first.main([str(tmp_path)]) == 2 and gpu_second.main([str(tmp_path), "cifar10"]) == 2
    assert capsys.readouterr().err.count("there is no GPU; rehearse with --device cpu --quick") == 2
