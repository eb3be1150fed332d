"""From a run to one file that holds its network, checked against the run before the file appears.

Shapes: B images of a batch, C channels, H x W positions, N test images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from bllpipe.errors import CheckpointError, ConfigError
from bllpipe.results.evaluation import Predictions, predict
from bllpipe.results.finished import FinishedRun, evaluation_batches, load_blocks
from bllpipe.results.network_file import (
    describe,
    fill,
    is_torchvision,
    load_network,
    network_weights,
    read_network,
    torchvision_network,
    whole_network,
)
from bllpipe.run.checkpoint.durable import unfinished
from bllpipe.run.checkpoint.shard import separate

__all__ = ["TARGETS", "export_run", "load_network", "whole_network"]

TARGETS = ("torchvision", "bllpipe")


def export_run(run: FinishedRun, target: str, file: Path, check: bool, say: Callable[[str], None]) -> None:
    """Writes the network of ``run`` to ``file``, and tells ``say`` which module takes it and what was checked.

    Args:
        target: ``torchvision`` (for a ResNet; checked in torchvision's own when it has this one) or ``bllpipe``.
        check: load the file, and compare what it says about every test image with the checkpoint.

    Raises ConfigError for a network that is no ResNet, CheckpointError when the file is not the run's network; then
    there is no file.
    """
    _check_target(run, target)
    metadata, weights = describe(run), network_weights(run.checkpoint)
    fill(whole_network(metadata, run.config.model.args), weights, str(run.checkpoint.path))
    expected = predict(run, load_blocks(run), torch.float32) if check else None
    accuracy = run.recorded_accuracy if expected is None else expected.accuracy[-1]
    accuracies = {} if accuracy is None else {"test_accuracy": repr(accuracy)}
    try:
        with unfinished(file) as temporary:
            save_file(separate(weights), temporary, {**metadata, **accuracies})
            if expected is not None:
                check_file(run, target, temporary, expected)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be written: {error}; make room, or name another file") from error
    say(f"wrote {file}: {len(weights)} tensors for {taker(target, metadata)}")
    for line in _checked(run, target, metadata, expected):
        say(line)


def taker(target: str, metadata: Mapping[str, str]) -> str:
    """The module into which the file loads, in words."""
    ours = "bllpipe.results.export.load_network(FILE)"
    if target == "bllpipe":
        return ours
    if is_torchvision(metadata):
        return f"torchvision.models.{metadata['model']}(num_classes={metadata['num_classes']}), and for {ours}"
    return (
        f"{ours}; the names are torchvision's, but not the network (stem {metadata['stem']}, width "
        f"{metadata['width']}, image shape {metadata['image_shape']}): its {metadata['model']} has stem imagenet, "
        f"width 64 and 3 channels"
    )


def _check_target(run: FinishedRun, target: str) -> None:
    if target == "torchvision" and ":" in run.config.model.name:
        raise ConfigError(
            f"model.name={run.config.model.name} is a network of your own, which torchvision does not have; "
            f"use --to bllpipe"
        )


def check_file(run: FinishedRun, target: str, file: Path, expected: Predictions) -> None:
    """Raises CheckpointError unless the network in ``file`` puts every test image into the class that the checkpoint
    puts it into."""
    network = _network_for(run, target, file)
    different = int((predicted_classes(run, network) != expected.class_EN[-1]).sum())
    if different:
        raise CheckpointError(
            f"the exported network puts {different} of {len(expected.label_N)} test images into another class than "
            f"{run.checkpoint.path} does, so no file was written; please report this with the run's config.yaml"
        )


def _network_for(run: FinishedRun, target: str, file: Path) -> nn.Module:
    """The network that the file is for, loaded strictly from it."""
    metadata, weights = read_network(file)
    theirs = torchvision_network(metadata) if target == "torchvision" else None
    network = whole_network(metadata, run.config.model.args) if theirs is None else theirs
    fill(network, weights, str(file))
    return network.to(run.device).eval()


@torch.no_grad()
def predicted_classes(run: FinishedRun, network: nn.Module) -> Tensor:
    """The class [N] that ``network`` gives each test image, in the run's own batches and precision."""
    found = []
    for x_BCHW, _ in evaluation_batches(run):
        with run.autocast():
            found.append(network(x_BCHW).argmax(dim=1).cpu())
    return torch.cat(found)


def _checked(run: FinishedRun, target: str, metadata: Mapping[str, str], expected: Predictions | None) -> list[str]:
    """What was checked, line by line."""
    if expected is None:
        return ["not checked: whether the file gives the run's test accuracy (--no-check)"]
    theirs = target == "torchvision" and is_torchvision(metadata)
    network = f"torchvision.models.{metadata['model']}" if theirs else "bllpipe's single-module network"
    accuracy = expected.accuracy[-1]
    return [
        f"checked: the file loads strictly into {network}",
        f"checked: all {len(expected.label_N):,} test images get the class that the checkpoint of step "
        f"{run.checkpoint.step} gives them, in batches of {run.config.data.batch_size} on the {run.device.type}",
        f"checked: test accuracy {100 * accuracy:.2f} %, {_comparison(run, accuracy)}",
    ]


def _comparison(run: FinishedRun, accuracy: float) -> str:
    """How ``accuracy`` stands to summary.json."""
    recorded = run.recorded_accuracy
    if recorded is None:
        return f"from the checkpoint; summary.json has none of step {run.checkpoint.step}"
    if recorded == accuracy:
        return "exactly that of summary.json"
    why = "bfloat16 between its blocks" if run.wire_dtype == torch.bfloat16 else "another device or processor, perhaps"
    return f"while summary.json has {100 * recorded:.2f} %, measured with {why}"
