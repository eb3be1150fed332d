"""A trained network as one safetensors file: the weights under torchvision's names, and a description of the network in
the metadata, from which it can be built again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bllpipe.config.resnets import DEPTHS
from bllpipe.config.schema import ModelConfig
from bllpipe.errors import CheckpointError
from bllpipe.learn.cuts import cut
from bllpipe.learn.networks import network_units
from bllpipe.learn.resnet import STEMS
from bllpipe.learn.saved import dtype_and_shape, is_of_network, restore
from bllpipe.learn.units import Segment, Unit
from bllpipe.results.finished import FinishedRun, some
from bllpipe.run.checkpoint import Checkpoint
from bllpipe.run.checkpoint.tensors import file_metadata, mapped_tensors
from bllpipe.version import __version__

FROM = "needed is a file that bllpipe export has written"
LARGEST = 1_000_000  # channels or classes
TORCHVISION = {"stem": "imagenet", "width": "64"}  # what torchvision's networks have, and 3 channels


def network_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The network's own parameters and buffers, of all ranks, without what carried errors back in training; views of
    the files."""
    tensors = checkpoint.mapped("model.").items()
    return {name.removeprefix("model."): value for name, value in tensors if is_of_network(name)}


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
        "bllpipe": __version__,
    }


def whole_network(metadata: Mapping[str, str], args: Mapping[str, Any] | None = None) -> Segment:
    """The network that ``metadata`` describes, as one module: [B, C, H, W] to class scores [B, K].

    Args:
        args: ``model.args`` of a network of your own, which the metadata do not hold; without them no function that
            a file names is ever imported.

    Raises CheckpointError when ``metadata`` are not those that ``bllpipe export`` writes.
    """
    return Segment(cut(network_units_of(metadata, args), 1)[0], seed=0)


def network_units_of(metadata: Mapping[str, str], args: Mapping[str, Any] | None = None) -> list[Unit]:
    """The same network as units; arguments and errors as in ``whole_network``."""
    model = _model(metadata, args)
    try:
        channels, num_classes = json.loads(metadata["image_shape"])[0], _number(metadata["num_classes"])
        if type(channels) is not int or not 1 <= channels <= LARGEST:
            raise ValueError(f"{channels!r:.80} channels")
    except (KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise CheckpointError(
            f"the metadata do not say what images and how many classes ({error!r:.200}); {FROM}"
        ) from error
    return network_units(model, channels, num_classes, seed=0)


def _number(text: str) -> int:
    """A size that a layer can have; ValueError otherwise."""
    if not (text.isdecimal() and len(text) <= len(str(LARGEST)) and 1 <= int(text) <= LARGEST):
        raise ValueError(f"{text[:80]!r} is no size of a layer")
    return int(text)


def _model(metadata: Mapping[str, str], args: Mapping[str, Any] | None) -> ModelConfig:
    name, stem, width = (metadata.get(key, "")[:300] for key in ("model", "stem", "width"))
    if ":" in name and args is not None:
        return ModelConfig(name=name, args=dict(args))
    if ":" in name:
        raise CheckpointError(
            f"the network is made by {name}, which is not called because a file says so; "
            f"if you trust it, pass its keyword arguments: args={{}} or the run's model.args"
        )
    try:
        known = name in DEPTHS and stem in STEMS and _number(width)
    except ValueError:
        known = 0
    if not known:
        raise CheckpointError(
            f"the metadata describe no ResNet (model {name!r}, stem {stem!r}, width {width!r}); {FROM}"
        )
    return ModelConfig(name=name, stem=stem, width=known)  # type: ignore[arg-type]  # one of STEMS


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

    Raises CheckpointError when the file cannot be read or does not hold exactly this network's weights. A ResNet is
    only built once its weights are known to be there: a file of a few bytes may describe a network of terabytes.
    """
    metadata, weights = read_network(file)
    if args is None:
        with torch.device("meta"):
            check_weights(whole_network(metadata), weights, str(file))
    network = whole_network(metadata, args)
    fill(network, weights, str(file))
    return network.eval()


def read_network(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and weights of a file or of what a link leads to, the weights as views of it; CheckpointError when it
    is none."""
    real = Path(os.path.realpath(file))
    return dict(file_metadata(real)), mapped_tensors(real)


def fill(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copies ``weights`` into the network; CheckpointError unless they are exactly its own."""
    check_weights(network, weights, source)
    restore(network.state_dict(), weights)


def check_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Raises CheckpointError unless ``weights`` have the names, shapes and dtypes of the network's."""
    if difference := _difference(network.state_dict(), weights):
        raise CheckpointError(f"{source} does not hold exactly the weights of the network: {difference}")


def _difference(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """The first thing that ``found`` has otherwise."""
    if missing := sorted(own.keys() - found.keys()):
        return f"it lacks {some(missing)}"
    if unknown := sorted(found.keys() - own.keys()):
        return f"it also holds {some(unknown)}"
    for name in own:
        if dtype_and_shape(own[name]) != dtype_and_shape(found[name]):
            return f"it holds {name} as {dtype_and_shape(found[name])}, needed is {dtype_and_shape(own[name])}"
    return None
