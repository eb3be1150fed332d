"""Exits, costs and leaving early: against real runs, and against figures computed by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bllpipe.cli.results import evaluation_table
from bllpipe.config.running import PrecisionConfig
from bllpipe.distributed.eight_bits import dequantise, quantise
from bllpipe.errors import ConfigError
from bllpipe.tools.analysis.evaluation import (
    BlockCost,
    Evaluation,
    Predictions,
    block_costs,
    counted,
    evaluate_run,
    exit_scores,
    leave_early,
    share,
)
from bllpipe.tools.analysis.finished_run import FinishedRun, evaluation_batches, load_blocks, open_run
from tests.support import jobs


def finished(folder: Path, *settings: str, engine: str = "sequential") -> FinishedRun:
    jobs.in_this_process(folder / "run", f"engine={engine}", *jobs.RESNET, "steps=12", *settings)
    return open_run(folder / "run", print)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return finished(tmp_path_factory.mktemp("digits"), "optimizer.lr=0.02", "steps=45")


@pytest.fixture(scope="module")
def evaluation(digits: FinishedRun) -> Evaluation:
    return evaluate_run(digits, [0.0, 0.6, 1.0])


def test_every_exit_has_the_accuracy_that_the_run_measured(digits: FinishedRun, evaluation: Evaluation) -> None:
    summary = jobs.summary(digits.path)
    assert [each.test_accuracy for each in evaluation.exits] == summary["block_accuracy"]
    assert evaluation.test_accuracy == evaluation.recorded_test_accuracy == summary["test_accuracy"]
    assert len(set(summary["block_accuracy"])) > 1, "a run that could not tell exits apart"


@pytest.mark.parametrize("precision", ["wire=bf16", "compute=bf16", "wire=int8"])
def test_the_runs_precision_is_kept(precision: str, tmp_path: Path) -> None:
    run = finished(tmp_path, "steps=45", f"precision.{precision}")
    recorded = jobs.summary(run.path)["block_accuracy"]
    assert [each.test_accuracy for each in evaluate_run(run).exits] == recorded
    plain = replace(run, config=replace(run.config, precision=PrecisionConfig()))
    x_BCHW = next(evaluation_batches(run))[0]
    kept, lost = (exit_scores(each, load_blocks(each), x_BCHW, each.wire_dtype)[-1] for each in (run, plain))
    assert not torch.equal(kept, lost), "which hits seldom tell"


def test_activations_in_eight_bits_have_the_ranges_of_their_shard(digits: FinishedRun) -> None:
    blocks, x_BCHW = load_blocks(digits), next(evaluation_batches(digits))[0]
    run = replace(digits, config=replace(digits.config, shards=2))
    _, found, *_ = exit_scores(run, blocks, x_BCHW, torch.uint8)
    halves = blocks[0].infer(x_BCHW).chunk(2)
    x = torch.cat([dequantise(*quantise(half)) for half in halves])
    assert torch.equal(found, blocks[1].head(blocks[1].infer(x)))
    assert not torch.equal(found, exit_scores(digits, blocks, x_BCHW, torch.uint8)[1]), "one range for all"


def test_activations_are_rounded_between_blocks_as_on_the_wire(digits: FinishedRun) -> None:
    blocks, x_BCHW = load_blocks(digits), next(evaluation_batches(digits))[0]
    exact = exit_scores(digits, blocks, x_BCHW, torch.float32)
    rounded = exit_scores(digits, blocks, x_BCHW, torch.bfloat16)
    assert torch.equal(exact[0], rounded[0])
    alpha = blocks[0].infer(x_BCHW).bfloat16().float()
    assert torch.equal(rounded[1], blocks[1].head(blocks[1].infer(alpha)))
    assert not torch.equal(rounded[1], exact[1])


@pytest.mark.parametrize(("compute", "read"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_blocks_read_what_they_read_in_the_run(digits: FinishedRun, compute: Any, read: torch.dtype) -> None:
    run = replace(digits, config=replace(digits.config, precision=PrecisionConfig(compute, "bf16")))
    blocks = load_blocks(run)
    exit_scores(run, blocks, next(evaluation_batches(run))[0], run.wire_dtype)
    assert [block.x.dtype for block in blocks] == [torch.float32, *[read] * (len(blocks) - 1)]


@pytest.mark.parametrize("method", ["bp", "fa"])
def test_a_whole_network_has_one_exit(method: str, tmp_path: Path) -> None:
    run = finished(tmp_path, f"method={method}", engine="single")
    evaluation = evaluate_run(run, [0.9])
    assert [each.test_accuracy for each in evaluation.exits] == [jobs.summary(run.path)["test_accuracy"]]
    assert (evaluation.early_exits[0].left, evaluation.early_exits[0].relative_cost) == ([1.0], 1.0)
    assert "leave at" not in evaluation_table(evaluation)


def test_what_only_training_needs_is_counted_apart(tmp_path: Path) -> None:
    run = finished(tmp_path, "method=predsim", "blocks=2")
    evaluation = evaluate_run(run)
    own = sum(value.numel() for name, value in run.checkpoint.tensors("objectives.").items() if "running" not in name)
    assert evaluation.training_only_parameters == sum(each.training_only_parameters for each in evaluation.exits) == own
    assert own > 0
    assert f"only training needs {own:,} parameters more" in evaluation_table(evaluation)


def test_parameters_are_those_of_the_network_up_to_the_exit(digits: FinishedRun, evaluation: Evaluation) -> None:
    blocks = load_blocks(digits)
    segments = [sum(p.numel() for p in block.segment.parameters()) for block in blocks]
    heads = [sum(p.numel() for p in block.head.parameters()) for block in blocks]
    assert [each.parameters for each in evaluation.exits] == [sum(segments[: k + 1]) + heads[k] for k in range(4)]
    assert evaluation.parameters == sum(segments)
    assert [each.head_parameters for each in evaluation.exits] == heads
    assert evaluation.exits[0].head_parameters_share == heads[0] / (segments[0] + heads[0])
    assert evaluation.exits[3].head_parameters_share == 0


def test_operations_are_those_of_the_layers_by_hand(evaluation: Evaluation) -> None:
    """Width 4 on 8 x 8 pixels: a 1 -> 4 stem and four 4 -> 4 convolutions, all 3 x 3; 256 features to 10 classes."""
    first = 64 * 9 * (1 * 4 + 4 * 4 * 4)
    second = 16 * (9 * (4 * 8 + 3 * 8 * 8) + 4 * 8)  # stride 2, with a 1 x 1 shortcut
    exits = evaluation.exits
    assert exits[0].macs == first + 256 * 10
    assert exits[1].macs == first + second + 128 * 10
    assert [each.flops for each in exits] == [2 * each.macs for each in exits]
    assert exits[0].head_flops_share == 2560 / (first + 2560)
    assert (exits[3].head_flops, evaluation.flops) == (0, exits[3].flops)


def test_all_leave_at_once_or_only_at_the_end(evaluation: Evaluation) -> None:
    at_once, between, at_the_end = evaluation.early_exits
    assert at_once.left == [1, 0, 0, 0]
    assert at_once.test_accuracy == evaluation.exits[0].test_accuracy
    assert at_once.mean_flops == evaluation.exits[0].flops
    assert sum(between.left) == pytest.approx(1) and 0 < between.left[0] < 1
    assert at_the_end.left == [0, 0, 0, 1]
    assert at_the_end.test_accuracy == evaluation.test_accuracy
    heads = sum(each.head_flops for each in evaluation.exits)
    assert at_the_end.relative_cost == (evaluation.flops + heads) / evaluation.flops > 1


def test_leaving_early_by_hand() -> None:
    predictions = Predictions(
        class_EN=torch.tensor([[1, 1, 2, 3], [0, 1, 2, 0], [0, 0, 0, 0]]),
        confidence_EN=torch.tensor([[0.9, 0.5, 0.75, 0.1], [1.0, 0.75, 0.9, 0.1], [0.1, 0.1, 0.1, 0.1]]),
        label_N=torch.tensor([0, 1, 2, 0]),
        ensemble_class_EN=torch.tensor([[1, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 0]]),
    )
    assert predictions.accuracy == [0.5, 1.0, 0.5]
    assert predictions.ensemble_accuracy == [0.5, 0.75, 1.0]
    costs = [BlockCost(10, 2, 1, 1, 0), BlockCost(20, 4, 1, 1, 0), BlockCost(30, 0, 1, 0, 0)]
    early = leave_early(predictions, 0.75, costs)
    assert early.left == [0.5, 0.25, 0.25]
    assert early.test_accuracy == 0.75
    assert early.mean_flops == (2 * 12 + 36 + 66) / 4
    assert early.relative_cost == early.mean_flops / 60


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_probability(digits: FinishedRun, threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"--threshold .* is no probability; expected numbers from 0 to 1"):
        evaluate_run(digits, [0.5, threshold])


def test_one_multiply_accumulate_is_two_operations() -> None:
    scores, flops = counted(nn.Linear(3, 5, bias=False), torch.ones(1, 3))
    assert (tuple(scores.shape), flops) == ((1, 5), 2 * 15)


def test_a_share_of_nothing_is_nothing() -> None:
    assert (share(0, 0), share(1, 4)) == (0.0, 0.25)


def test_counting_changes_no_weight(digits: FinishedRun) -> None:
    blocks = load_blocks(digits)
    before = {name: value.clone() for block in blocks for name, value in block.learner.weights().items()}
    block_costs(blocks, digits.images.spec.image_shape)
    after = {name: value for block in blocks for name, value in block.learner.weights().items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_figures_are_json(evaluation: Evaluation) -> None:
    record = json.loads(json.dumps(asdict(evaluation)))
    assert (record["method"], record["step"], record["test_images"]) == ("bll", 45, 355)
    assert [each["after"] for each in record["exits"]] == ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    assert [each["threshold"] for each in record["early_exits"]] == [0.0, 0.6, 1.0]


def test_the_table_shows_every_exit_and_threshold(evaluation: Evaluation) -> None:
    lines = evaluation_table(evaluation).splitlines()
    assert lines[0].startswith("run: bll, step 45, 355 test images, test accuracy ")
    assert "the run itself measured" in lines[0]
    rows = [line.split() for line in lines]
    exits = [row for row in rows if len(row) > 1 and row[1].startswith("layer")]
    assert [row[2] for row in exits] == [f"{100 * each.test_accuracy:.2f}" for each in evaluation.exits]
    assert [row[4] for row in exits] == [f"{100 * each.ensemble_accuracy:.2f}" for each in evaluation.exits]
    assert [float(row[6]) for row in exits] == [round(each.flops / 1e6, 3) for each in evaluation.exits]
    assert [line.split()[0] for line in lines[-4:-1]] == ["0.000", "0.600", "1.000"]
