"""All heads together (evaluate.ensemble): the same count in every engine, right, and beside all other figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bllpipe import launch
from bllpipe.tools.analysis.evaluation import evaluate_run, exit_scores
from bllpipe.tools.analysis.finished_run import evaluation_batches, load_blocks, open_run
from tests.support import jobs

# two tests, behind steps 44 and 46, of 355 images each: the last batch has three; activations are rounded on the wire
SETTINGS = (*jobs.SMALL, "steps=46", "evaluate.every_epochs=1", "optimizer.lr=0.02", "precision.wire=bf16")
ON = (*SETTINGS, "evaluate.ensemble=true")
TIMES = ("training_seconds",)


def lines_of_tests(run_dir: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """The lines of all tests by step and block, without what differs from run to run."""
    lines = [line for line in jobs.metrics(run_dir) if line["phase"] == "evaluate"]
    return {
        (line["step"], line["actor"]): {name: value for name, value in line.items() if name not in TIMES}
        for line in lines
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ensemble")


@pytest.fixture(scope="module")
def sequential(folder: Path) -> dict[str, Any]:
    return jobs.in_this_process(folder / "sequential", "engine=sequential", *ON)


@pytest.mark.parametrize("engine", ["threads", "streams"])
def test_engines_of_one_process_count_the_same(engine: str, folder: Path, sequential: dict[str, Any]) -> None:
    found = jobs.in_this_process(folder / engine, f"engine={engine}", *ON)
    assert found["ensemble_accuracy"] == sequential["ensemble_accuracy"]
    assert found["state_sha256"] == sequential["state_sha256"]
    assert lines_of_tests(folder / engine) == lines_of_tests(folder / "sequential")


@pytest.mark.ranks
def test_ranks_that_go_on_from_another_engine_count_the_same(folder: Path, sequential: dict[str, Any]) -> None:
    jobs.in_this_process(folder / "ranks", "engine=sequential", *ON, "stop_at=20")
    assert jobs.summary(folder / "ranks")["ensemble_accuracy"] is None, "nothing was tested yet"
    jobs.succeed(jobs.ranks(5, jobs.words(folder / "ranks", *ON, options=("--resume", "auto"))))
    found = jobs.summary(folder / "ranks")
    assert (found["engine"], found["ensemble_accuracy"]) == ("ranks", sequential["ensemble_accuracy"])
    assert found["state_sha256"] == sequential["state_sha256"]
    assert lines_of_tests(folder / "ranks") == lines_of_tests(folder / "sequential")


def test_it_is_beside_all_that_was_measured_before(folder: Path, sequential: dict[str, Any]) -> None:
    without = jobs.in_this_process(folder / "without", "engine=sequential", *SETTINGS)
    assert "ensemble_accuracy" not in without
    same = ("state_sha256", "test_accuracy", "block_accuracy", "sent_bytes")
    assert [without[key] for key in same] == [sequential[key] for key in same]
    found, counted = lines_of_tests(folder / "sequential"), list[Any]()
    for line in found.values():
        if line["actor"] == "block 3":
            counted.append(line.pop("ensemble_accuracy"))
    assert found == lines_of_tests(folder / "without"), "the other blocks have no such figure"
    assert len(counted) == 2 and counted[-1] == sequential["ensemble_accuracy"] != sequential["test_accuracy"]


def test_it_is_the_accuracy_of_the_mean_probabilities(folder: Path, sequential: dict[str, Any]) -> None:
    run = open_run(folder / "sequential", print)
    blocks, hits = load_blocks(run), 0
    for x_BCHW, label_B in evaluation_batches(run):
        scores_EBK = torch.stack(exit_scores(run, blocks, x_BCHW, torch.bfloat16))
        hits += int((scores_EBK.double().softmax(dim=2).mean(dim=0).argmax(dim=1) == label_B).sum())
    assert sequential["ensemble_accuracy"] == hits / 355


def test_eval_gives_the_same_and_that_of_the_first_exits(folder: Path, sequential: dict[str, Any]) -> None:
    evaluation = evaluate_run(open_run(folder / "sequential", print))
    together = [each.ensemble_accuracy for each in evaluation.exits]
    assert evaluation.ensemble_accuracy == together[-1] == sequential["ensemble_accuracy"]
    assert together[0] == evaluation.exits[0].test_accuracy
    assert evaluation.test_accuracy == sequential["test_accuracy"]


def test_a_run_that_began_without_it_goes_on_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("engine=sequential", *jobs.SMALL, "steps=4", "blocks=2")
    jobs.in_this_process(tmp_path / "run", *few, "stop_at=2")
    assert launch.main(jobs.words(tmp_path / "run", *few, "evaluate.ensemble=true", options=("--resume", "auto"))) == 0
    accuracy = jobs.summary(tmp_path / "run")["ensemble_accuracy"]
    assert f"\nall heads together {100 * accuracy:>8.2f} %\ntest accuracy " in capsys.readouterr().out
