"""From a run to one file that holds its network, and to another one for its local heads if wanted, each checked against
the run before it appears.

Shapes: B images of a batch, C channels, H x W positions, N test images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from bllpipe.checkpoint.writer import separate
from bllpipe.errors import CheckpointError, ConfigError
from bllpipe.models.zoo import builder, is_in_zoo
from bllpipe.tools.analysis.evaluation import Predictions, predict
from bllpipe.tools.analysis.finished_run import FinishedRun, evaluation_batches, load_blocks
from bllpipe.tools.analysis.network_file import (
    describe,
    fill,
    heads_of,
    is_torchvision,
    load_ensemble,
    network_weights,
    read_network,
    torchvision_network,
    whole_network,
)
from bllpipe.utils.console import percent
from bllpipe.utils.files import atomic_file


def export_run(
    run: FinishedRun, target: str, file: Path, check: bool, say: Callable[[str], None], heads: Path | None = None
) -> None:
    """Writes the network of ``run`` to ``file``, and tells ``say`` which module takes it and what was checked.

    Args:
        target: ``torchvision`` (for a ResNet or a torchvision:NAME; checked in torchvision's own when it has this one),
            ``timm`` (for a timm:NAME) or ``bllpipe``.
        check: load the file, and compare what it says about every test image with the checkpoint.
        heads: where to write the local heads, if anywhere.

    Raises ConfigError for a network that is no ResNet, or that has no local heads to write, CheckpointError when the
    file is not the run's network; then there is no file.
    """
    _check(run, target, file, heads)
    metadata, weights = describe(run), network_weights(run.checkpoint)
    fill(whole_network(metadata, run.config.model.args), weights, str(run.checkpoint.path))
    expected = predict(run, load_blocks(run), torch.float32) if check else None
    accuracy = run.recorded_accuracy if expected is None else expected.accuracy[-1]
    accuracies = {} if accuracy is None else {"test_accuracy": repr(accuracy)}
    with _written(file, weights, {**metadata, **accuracies}) as temporary:
        if expected is not None:
            check_file(run, target, temporary, expected)
    say(f"wrote {file}: {len(weights)} tensors for {_taker(target, metadata)}")
    for line in _checked(run, target, metadata, expected):
        say(line)
    if heads is not None:
        export_heads(run, file, heads, expected, say)


def export_heads(
    run: FinishedRun, file: Path, heads: Path, expected: Predictions | None, say: Callable[[str], None]
) -> None:
    """Writes the local heads of ``run``, whose network is in ``file``; CheckpointError unless both together give every
    test image the class that is ``expected``, if any is."""
    metadata, weights = heads_of(run, load_blocks(run))
    accuracies = {} if expected is None else {"ensemble_accuracy": repr(expected.ensemble_accuracy[-1])}
    with _written(heads, weights, {**metadata, **accuracies}) as temporary:
        if expected is not None:
            network = load_ensemble(file.absolute(), temporary.absolute(), run.config.model.args).to(run.device)
            _compare(run, "ensemble", predicted_classes(run, network), expected.ensemble_class_EN[-1])
    loader = "bllpipe.load_ensemble"
    say(f"wrote {heads}: {len(weights)} tensors of {run.config.num_blocks - 1} local heads for {loader}(FILE, HEADS)")
    if expected is not None:
        say(
            f"checked: all exits together give all {len(expected.label_N):,} test images the class that the checkpoint "
            f"gives them; test accuracy {percent(expected.ensemble_accuracy[-1])}"
        )


@contextmanager
def _written(file: Path, weights: Mapping[str, Tensor], metadata: dict[str, str]) -> Iterator[Path]:
    """The safetensors file under a name for now; it is called ``file`` when nothing was found to be wrong with it."""
    try:
        with atomic_file(file) as temporary:
            save_file(separate(weights), temporary, metadata)
            yield temporary
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be written: {error}; make room, or name another file") from error


def _taker(target: str, metadata: Mapping[str, str]) -> str:
    """The module into which the file loads, in words."""
    ours = "bllpipe.load_network(FILE)"
    if target == "bllpipe":
        return ours
    if is_in_zoo(metadata["model"]):
        package, _, name = metadata["model"].partition(":")
        return f"{package}'s {name} of {metadata['num_classes']} classes"
    if is_torchvision(metadata):
        return f"torchvision.models.{metadata['model']}(num_classes={metadata['num_classes']}), and for {ours}"
    return (
        f"{ours}; the names are torchvision's, but not the network (stem {metadata['stem']}, width "
        f"{metadata['width']}, image shape {metadata['image_shape']}): its {metadata['model']} has stem imagenet, "
        f"width 64 and 3 channels"
    )


def _check(run: FinishedRun, target: str, file: Path, heads: Path | None) -> None:
    name = run.config.model.name
    package = name.partition(":")[0] if is_in_zoo(name) else "bllpipe" if ":" in name else "torchvision"
    if target not in (package, "bllpipe"):
        kind = f"of {package}" if is_in_zoo(name) else "of your own" if ":" in name else "of torchvision"
        raise ConfigError(f"model.name={name} is a network {kind}, which {target} does not have; use --to {package}")
    if heads is not None and run.config.num_blocks == 1:
        raise ConfigError(
            f"--heads {heads}: the network of {run.path} learned in one block, which has no local head; "
            f"leave out --heads"
        )
    if heads is not None and heads.resolve() == file.resolve():
        raise ConfigError(f"--heads {heads} is the file of the network, too; name another one for the heads")


def check_file(run: FinishedRun, target: str, file: Path, expected: Predictions) -> None:
    """Raises CheckpointError unless the file loads strictly into the network that it is for, and this puts every test
    image into the class that the checkpoint puts it into."""
    metadata, weights = read_network(file)
    theirs = None
    if target != "bllpipe" and is_in_zoo(run.config.model.name):  # untouched: in one piece, with its own forward
        build, spec = builder(run.config.model.name), run.images.spec
        theirs = build(in_channels=spec.image_shape[0], num_classes=spec.num_classes, **run.config.model.args)
    elif target == "torchvision":
        theirs = torchvision_network(metadata)
    network = whole_network(metadata, run.config.model.args) if theirs is None else theirs
    fill(network, weights, str(file))
    classes_N = predicted_classes(run, network.to(run.device).eval())
    _compare(run, "network", classes_N, expected.class_EN[-1])


def _compare(run: FinishedRun, what: str, class_N: Tensor, expected_N: Tensor) -> None:
    if different := int((class_N != expected_N).sum()):
        raise CheckpointError(
            f"the exported {what} puts {different} of {len(expected_N)} test images into another class than "
            f"{run.checkpoint.path} does, so no file was written; please report this with the run's config.yaml"
        )


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
    network = "bllpipe's single-module network"
    if target != "bllpipe" and is_in_zoo(metadata["model"]):
        network = "{0}'s own {2}".format(*metadata["model"].partition(":"))
    elif target == "torchvision" and is_torchvision(metadata):
        network = f"torchvision.models.{metadata['model']}"
    accuracy, recorded = expected.accuracy[-1], run.recorded_accuracy
    if recorded is None:
        origin = f"from the checkpoint; summary.json has none of step {run.checkpoint.step}"
    elif recorded == accuracy:
        origin = "exactly that of summary.json"
    else:
        wires = {"bf16": "bfloat16 between its blocks", "int8": "8 bits between its blocks"}
        why = wires.get(run.config.precision.wire, "another device or processor, perhaps")
        origin = f"while summary.json has {percent(recorded)}, measured with {why}"
    return [
        f"checked: the file loads strictly into {network}",
        f"checked: all {len(expected.label_N):,} test images get the class that the checkpoint of step "
        f"{run.checkpoint.step} gives them, in batches of {run.config.data.batch_size} on the {run.device.type}",
        f"checked: test accuracy {percent(accuracy)}, {origin}",
    ]
