"""A trained network as one safetensors file: the weights under torchvision's names, and a description of the network in
the metadata, from which it can be built again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import bllpipe
from bllpipe.config.resnets import DEPTHS
from bllpipe.config.schema import ModelConfig
from bllpipe.errors import CheckpointError
from bllpipe.learn.cuts import cut
from bllpipe.learn.networks import network_units
from bllpipe.learn.resnet import STEMS
from bllpipe.learn.units import Segment
from bllpipe.results.finished import FinishedRun
from bllpipe.run.checkpoint import Checkpoint

FROM = "needed is a file that bllpipe export has written"
TORCHVISION = {"stem": "imagenet", "width": "64"}  # what torchvision's networks have, and 3 channels


def network_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The network's own parameters and buffers, of all ranks, without what carried errors back in training."""
    tensors = checkpoint.tensors("model.").items()
    return {name.removeprefix("model."): value for name, value in tensors if not name.endswith(".feedback_weight")}


def describe(run: FinishedRun) -> dict[str, str]:
    """What whoever uses the network has to know: how to build it, what images it takes, where it comes from.

    Pixels in 0..1 are normalised with ``image_mean`` and ``image_std``, a value a channel of ``image_shape`` [C, H, W].
    """
    model, spec = run.config.model, run.images.spec
    shape = {} if ":" in model.name else {"width": str(model.width), "stem": model.stem}
    return {
        "model": model.name,
        **shape,
        "num_classes": str(spec.num_classes),
        "image_shape": json.dumps(spec.image_shape),
        "image_mean": json.dumps(run.images.mean),
        "image_std": json.dumps(run.images.std),
        "method": run.config.method,
        "step": str(run.checkpoint.step),
        "bllpipe": bllpipe.__version__,
    }


def whole_network(metadata: Mapping[str, str], args: Mapping[str, Any] | None = None) -> Segment:
    """The network that ``metadata`` describes, as one module: [B, C, H, W] to class scores [B, K].

    Args:
        args: ``model.args`` of a network of your own, which the metadata do not hold; without them no function that
            a file names is ever imported.

    Raises CheckpointError when ``metadata`` are not those that ``bllpipe export`` writes.
    """
    model = _model(metadata, args)
    try:
        channels, num_classes = int(json.loads(metadata["image_shape"])[0]), int(metadata["num_classes"])
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"the metadata do not say what images and how many classes ({error!r}); {FROM}"
        ) from error
    return Segment(cut(network_units(model, channels, num_classes, seed=0), 1)[0], seed=0)


def _model(metadata: Mapping[str, str], args: Mapping[str, Any] | None) -> ModelConfig:
    name, stem, width = (metadata.get(key, "") for key in ("model", "stem", "width"))
    if ":" in name and args is not None:
        return ModelConfig(name=name, args=dict(args))
    if ":" in name:
        raise CheckpointError(
            f"the network is made by {name}, which is not called because a file says so; "
            f"if you trust it, pass its keyword arguments: args={{}} or the run's model.args"
        )
    if name not in DEPTHS or stem not in STEMS or not width.isdecimal():
        raise CheckpointError(
            f"the metadata describe no ResNet (model {name!r}, stem {stem!r}, width {width!r}); {FROM}"
        )
    return ModelConfig(name=name, stem=stem, width=int(width))  # type: ignore[arg-type]  # one of STEMS


def torchvision_network(metadata: Mapping[str, str]) -> nn.Module | None:
    """torchvision's network for these weights; None when it has none that takes them."""
    if not is_torchvision(metadata):
        return None
    from torchvision import models  # takes seconds

    network: nn.Module = getattr(models, metadata["model"])(num_classes=int(metadata["num_classes"]))
    return network


def is_torchvision(metadata: Mapping[str, str]) -> bool:
    """Whether the network is one of torchvision's: imagenet stem, width 64, 3 channels."""
    has_stem = all(metadata.get(key) == value for key, value in TORCHVISION.items())
    return has_stem and json.loads(metadata["image_shape"])[0] == 3


def load_network(file: Path, args: Mapping[str, Any] | None = None) -> Segment:
    """The network in ``file``, in evaluation mode; ``args`` as in ``whole_network``.

    Raises CheckpointError when the file cannot be read or does not hold exactly this network's weights.
    """
    metadata, weights = read_network(file)
    network = whole_network(metadata, args)
    fill(network, weights, str(file))
    return network.eval()


def read_network(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and weights of a file; CheckpointError when it is none."""
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}, {name: opened.get_tensor(name).clone() for name in list(opened.keys())}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is not a safetensors file that can be read: {error}") from error


def fill(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Loads ``weights`` strictly; CheckpointError when names or shapes differ."""
    try:
        network.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{source} does not hold exactly the weights of the network: {error}") from error
