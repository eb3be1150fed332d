"""A run's network in one file: the same bits in torchvision's network, or in the single module, as in the blocks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision import models

import bllpipe
from bllpipe.errors import CheckpointError, ConfigError
from bllpipe.tools.analysis.evaluation import exit_scores, predict
from bllpipe.tools.analysis.export import check_file, export_run
from bllpipe.tools.analysis.finished_run import FinishedRun, evaluation_batches, load_blocks, open_run
from bllpipe.tools.analysis.network_file import load_network, network_weights, read_network, whole_network
from tests.support import jobs

TORCHVISIONS = ("model.stem=imagenet", "model.width=64", "data.name=synthetic", "data.image_size=32")
RESNET = {"model": "resnet18", "stem": "cifar", "width": "4", "image_shape": "[1, 8, 8]", "num_classes": "10"}


def small_network(in_channels: int, num_classes: int, hidden: int) -> list[nn.Module]:
    """A network of a user's own."""
    first = nn.Sequential(nn.Flatten(1), nn.Linear(64 * in_channels, hidden), nn.ReLU())
    return [first, nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU()), nn.Linear(hidden, num_classes)]


def finished(folder: Path, *settings: str, engine: str = "sequential") -> FinishedRun:
    jobs.in_this_process(folder / "run", f"engine={engine}", *jobs.RESNET, "steps=12", *settings)
    return open_run(folder / "run", print)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return finished(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run whose network is torchvision's resnet18."""
    few = ("data.synthetic_images=64", "data.synthetic_classes=3", "data.batch_size=10", "steps=3", "blocks=2")
    return finished(tmp_path_factory.mktemp("imagenet"), *TORCHVISIONS, *few)


@torch.no_grad()
def same_bits(run: FinishedRun, network: nn.Module) -> bool:
    """Whether ``network`` gives the class scores of the checkpoint's blocks for every test image."""
    blocks = load_blocks(run)
    return all(
        torch.equal(network(x_BCHW), exit_scores(run, blocks, x_BCHW, torch.float32)[-1])
        for x_BCHW, _ in evaluation_batches(run)
    )


def exported(run: FinishedRun, file: Path, target: str = "torchvision", check: bool = True) -> str:
    """What the export says."""
    said: list[str] = []
    export_run(run, target, file, check, said.append)
    return "\n".join(said)


def test_torchvisions_network_takes_the_file_and_gives_the_same_bits(imagenet: FinishedRun, tmp_path: Path) -> None:
    said = exported(imagenet, tmp_path / "model.safetensors")
    network = models.resnet18(num_classes=3)
    network.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert same_bits(imagenet, network.eval())
    assert "122 tensors for torchvision.models.resnet18(num_classes=3), and for" in said
    assert "checked: the file loads strictly into torchvision.models.resnet18\n" in said
    assert "all 16 test images get the class that the checkpoint of step 3 gives them, in batches of 10" in said
    assert said.endswith("%, exactly that of summary.json")


def test_the_accuracy_is_that_of_the_summary_exactly(imagenet: FinishedRun, tmp_path: Path) -> None:
    exported(imagenet, tmp_path / "model.safetensors")
    network = load_network(tmp_path / "model.safetensors")
    with torch.no_grad():
        hits = sum(int((network(x).argmax(1) == label_B).sum()) for x, label_B in evaluation_batches(imagenet))
    recorded = jobs.summary(imagenet.path)["test_accuracy"]
    assert hits / 16 == recorded
    assert float(read_network(tmp_path / "model.safetensors")[0]["test_accuracy"]) == recorded


def test_the_single_module_takes_a_cifar_stem(digits: FinishedRun, tmp_path: Path) -> None:
    said = exported(digits, tmp_path / "model.safetensors")
    assert same_bits(digits, load_network(tmp_path / "model.safetensors"))
    assert "for bllpipe.load_network(FILE); the names are torchvision's, but not the network" in said
    assert "(stem cifar, width 4, image shape [1, 8, 8])" in said
    assert "checked: the file loads strictly into bllpipe's single-module network\n" in said


def test_the_names_are_torchvisions(digits: FinishedRun, tmp_path: Path) -> None:
    exported(digits, tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors").keys() == models.resnet18().state_dict().keys()


def test_the_metadata_describe_the_network(digits: FinishedRun, tmp_path: Path) -> None:
    exported(digits, tmp_path / "model.safetensors", "bllpipe")
    assert read_network(tmp_path / "model.safetensors")[0] == {
        **RESNET,
        "image_mean": "[0.305]",
        "image_std": "[0.3763]",
        "method": "bll",
        "step": "12",
        "test_accuracy": repr(jobs.summary(digits.path)["test_accuracy"]),
        "bllpipe": bllpipe.__version__,
    }


def test_both_targets_write_the_same(digits: FinishedRun, tmp_path: Path) -> None:
    exported(digits, tmp_path / "theirs")
    said = exported(digits, tmp_path / "ours", "bllpipe")
    (theirs, weights), (ours, our_weights) = (read_network(tmp_path / name) for name in ("theirs", "ours"))
    assert theirs == ours and weights.keys() == our_weights.keys()
    assert all(torch.equal(value, our_weights[name]) for name, value in weights.items())
    assert said.startswith(f"wrote {tmp_path / 'ours'}: 122 tensors for bllpipe.load_network(FILE)\n")


def test_without_a_check_the_accuracy_is_the_recorded_one(digits: FinishedRun, tmp_path: Path) -> None:
    assert exported(digits, tmp_path / "model", check=False).endswith("test accuracy (--no-check)")
    recorded = jobs.summary(digits.path)["test_accuracy"]
    assert read_network(tmp_path / "model")[0]["test_accuracy"] == repr(recorded)


def test_a_run_without_summary(digits: FinishedRun, tmp_path: Path) -> None:
    run = replace(digits, summary=None)
    exported(run, tmp_path / "unchecked", check=False)
    assert "test_accuracy" not in read_network(tmp_path / "unchecked")[0]
    assert "from the checkpoint; summary.json has none of step 12" in exported(run, tmp_path / "checked")
    assert float(read_network(tmp_path / "checked")[0]["test_accuracy"]) == digits.recorded_accuracy


def test_another_accuracy_in_the_summary_is_told(digits: FinishedRun, tmp_path: Path) -> None:
    run = replace(digits, summary={"steps": 12, "test_accuracy": 0.5})
    assert "while summary.json has 50.00 %, measured with another device" in exported(run, tmp_path / "model")


def test_what_carried_errors_back_is_left_out(tmp_path: Path) -> None:
    run = finished(tmp_path, "method=fa", engine="single")
    assert any(name.endswith(".feedback_weight") for name in run.checkpoint.tensors("model."))
    assert "exactly that of summary.json" in exported(run, tmp_path / "model")
    assert load_file(tmp_path / "model").keys() == models.resnet18().state_dict().keys()


def test_activations_in_bfloat16_between_blocks_are_told(tmp_path: Path) -> None:
    run = finished(tmp_path, "precision.wire=bf16", "precision.compute=bf16")
    said = exported(run, tmp_path / "model")
    assert "exactly that of summary.json" in said or "measured with bfloat16 between its blocks" in said
    assert "checked: all 355 test images" in said


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    own = f"model.name={__name__}:small_network"
    run = finished(tmp_path, own, "model.args.hidden=12", "blocks=2", "objective.head=gap")
    with pytest.raises(
        ConfigError, match=r"small_network is a network of your own, which torchvision .*; use --to bllp"
    ):
        exported(run, tmp_path / "model")
    assert "exactly that of summary.json" in exported(run, tmp_path / "model", "bllpipe")
    assert same_bits(run, load_network(tmp_path / "model", {"hidden": 12}))
    with pytest.raises(
        CheckpointError, match=r"made by .*:small_network, which is not called because a file says so; "
    ):
        load_network(tmp_path / "model")


def test_a_file_that_gives_other_classes_is_refused(digits: FinishedRun, tmp_path: Path) -> None:
    expected = predict(digits, load_blocks(digits), torch.float32)
    weights = network_weights(digits.checkpoint)
    metadata = {**RESNET, "unknown keys": "are let be"}
    save_file(weights, tmp_path / "same", metadata)
    check_file(digits, "torchvision", tmp_path / "same", expected)
    save_file({**weights, "fc.weight": -weights["fc.weight"]}, tmp_path / "other", metadata)
    with pytest.raises(
        CheckpointError, match=r"puts \d+ of 355 test images into another class than .*step-00000012 doe"
    ):
        check_file(digits, "torchvision", tmp_path / "other", expected)


def test_weights_of_another_network_are_refused(digits: FinishedRun, tmp_path: Path) -> None:
    model = replace(digits.config.model, name="resnet34")
    run = replace(digits, config=replace(digits.config, model=model))
    with pytest.raises(CheckpointError, match=r"step-00000012 does not hold exactly the weights of the network"):
        exported(run, tmp_path / "model", check=False)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written(digits: FinishedRun, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be written: .*; make room, or name another file"):
        exported(digits, tmp_path / ("long" * 100), check=False)


@pytest.mark.parametrize("content", [b"", b"no tensors"])
def test_a_file_that_is_no_safetensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match="file is not a safetensors file that can be read"):
        load_network(tmp_path / "file")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none is missing"):
        load_network(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet19"}, "describe no ResNet .model 'resnet19', stem 'cifar', width '4'.; expected a file"),
        ({"stem": "large"}, "describe no ResNet .*stem 'large'"),
        ({"width": "-4"}, "describe no ResNet .*width '-4'"),
        ({"num_classes": "ten"}, "do not say what images and how many classes .*ten.*; expected a file that bllpipe"),
        ({"image_shape": "[]"}, "do not say what images"),
        ({"image_shape": "3"}, "do not say what images"),
    ],
)
def test_metadata_that_describe_nothing(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        whole_network({**RESNET, **change})


def test_metadata_of_others() -> None:
    with pytest.raises(CheckpointError, match="describe no ResNet .model ''"):
        whole_network({})


def test_the_whole_network_takes_the_images_that_are_described() -> None:
    network = whole_network({**RESNET, "image_shape": json.dumps([3, 16, 16]), "num_classes": "7"}).eval()
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
