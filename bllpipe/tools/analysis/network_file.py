"""A trained network as one safetensors file, its local heads as another, and what is built from them again.

The weights have torchvision's names; the metadata describe the network. The two files together are one module, the
ensemble of all exits.

Shapes: B images, C channels, H x W positions, K classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bllpipe.checkpoint import Checkpoint
from bllpipe.checkpoint.reader import file_metadata, mapped_tensors
from bllpipe.config import parse_config, to_mapping
from bllpipe.config.loader import with_moved_keys
from bllpipe.config.networks import DEPTHS
from bllpipe.config.schema import Config, ModelConfig, ObjectiveConfig
from bllpipe.errors import CheckpointError, ConfigError
from bllpipe.learn.block import Block, add_votes, alpha_shape
from bllpipe.learn.heads import make_head
from bllpipe.models.partition import cut
from bllpipe.models.registry import last_width, network_units, units_after
from bllpipe.models.resnet import STEMS
from bllpipe.models.units import Segment, Unit, units_from_modules
from bllpipe.tools.analysis.finished_run import FinishedRun, some
from bllpipe.utils.tensors import dtype_and_shape, is_of_network, part_digest, restore, torch_defaults
from bllpipe.version import __version__

FROM = "expected a file that bllpipe export has written"
LARGEST = 1_000_000  # channels or classes
TORCHVISION = {"stem": "imagenet", "width": "64"}  # what torchvision's networks have, and 3 channels
MOST_LAYERS = 1000  # of a head
Tokens = Literal["class", "mean"]  # objective.tokens of a head
Shapes = dict[str, tuple[int, ...]]  # of alpha, without the batch, by the unit that a head reads


def network_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The network's own parameters and buffers, of all ranks, without what carried errors back in training; views of
    the files."""
    tensors = checkpoint.mapped("model.").items()
    return {name.removeprefix("model."): value for name, value in tensors if is_of_network(name)}


def describe(run: FinishedRun) -> dict[str, str]:
    """What a user of the network has to know: how to build it, what images it takes, where it comes from.

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
        shape, num_classes = json.loads(metadata["image_shape"]), _number(metadata["num_classes"])
        if type(shape[0]) is not int or not 1 <= shape[0] <= LARGEST:
            raise ValueError(f"{shape[0]!r:.80} channels")
        if not all(type(size) is int and 1 <= size <= LARGEST for size in shape):
            raise ValueError(f"images of {shape!r:.80}")
    except (KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise CheckpointError(
            f"the metadata do not say what images and how many classes ({error!r:.200}); {FROM}"
        ) from error
    return network_units(model, shape, num_classes, seed=0)


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


def load_network(file: str | PathLike[str], args: Mapping[str, Any] | None = None) -> Segment:
    """The network in ``file``, in evaluation mode and on torch's default device; ``args`` as in ``whole_network``.

    Raises CheckpointError when the file cannot be read or does not hold exactly this network's weights. A ResNet is
    only built once its weights are known to be there: a file of a few bytes may describe a network of terabytes.
    """
    device = torch.get_default_device()
    with torch_defaults():  # or the weights would have the default dtype, and be for inference alone in that mode
        return _network(Path(os.path.expanduser(file)), args).to(device)


def _network(file: Path, args: Mapping[str, Any] | None) -> Segment:
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
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    forms = {name: (dtype_and_shape(own[name]), dtype_and_shape(weights[name])) for name in own if name in weights}
    if missing:
        difference = f"it lacks {some(missing)}"
    elif unknown:
        difference = f"it also holds {some(unknown)}"
    elif other := next((name for name, (expected, found) in forms.items() if expected != found), None):
        difference = f"it holds {other} as {forms[other][1]}, expected {forms[other][0]}"
    else:
        return
    raise CheckpointError(f"{source} does not hold exactly the weights of the network: {difference}")


class Ensemble(nn.Module):
    """All exits of a network at once: images [B, C, H, W] to the mean of their class probabilities, float32 [B, K]."""

    def __init__(self, blocks: Sequence[nn.Module], heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks, self.heads = nn.ModuleList(blocks), nn.ModuleList(heads)

    def forward(self, x: Tensor) -> Tensor:
        votes_BK = torch.zeros(())
        for number, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            alpha = block(x)
            votes_BK = add_votes(votes_BK if number else None, head(alpha))
            x = alpha.float()  # as it goes from block to block, also under autocast
        return votes_BK / len(self.heads)


def heads_of(run: FinishedRun, blocks: Sequence[Block]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and weights of all local heads: how to build them, and which network they are the heads of. A weight
    has the name of the unit in front of its own."""
    shapes, shape = Shapes(), run.images.spec.image_shape
    for block in blocks[:-1]:
        shape = shapes[block.segment.last_unit] = alpha_shape(block.segment, shape, run.device)
    spec, config = run.images.spec, run.config
    model = replace(config.model, weights=None)
    width = last_width(config, network_units(model, spec.image_shape, spec.num_classes, config.seed))
    settings = replace(config.objective, head_width=config.objective.head_width or width)
    objective = {key: value for key, value in to_mapping(settings).items() if key.startswith("head")}
    network = {name: value for block in blocks for name, value in block.segment.state_dict().items()}
    tokens = {block.segment.last_unit: block.config.objective.tokens for block in blocks[:-1]}
    metadata = {
        **describe(run),
        "heads": json.dumps(shapes),
        "tokens": json.dumps(tokens),
        "objective": json.dumps(objective),
        "network_sha256": part_digest(network),
    }
    return metadata, _named({block.segment.last_unit: block.head for block in blocks[:-1]}).state_dict()


def load_ensemble(
    file: str | PathLike[str], heads: str | PathLike[str], args: Mapping[str, Any] | None = None
) -> Ensemble:
    """The network in ``file`` with its ``heads``, in evaluation mode: two files that one ``bllpipe export`` has
    written. Device and ``args`` as in ``load_network``.

    Raises CheckpointError when a file cannot be read, or the heads are none or those of another network.
    """
    device = torch.get_default_device()
    with torch_defaults():
        return _ensemble(Path(os.path.expanduser(file)), Path(os.path.expanduser(heads)), args).to(device)


def _ensemble(file: Path, heads: Path, args: Mapping[str, Any] | None) -> Ensemble:
    network = _network(file, args)
    metadata, weights = read_network(heads)
    if metadata.get("network_sha256") != part_digest(network.state_dict()):
        raise CheckpointError(
            f"{heads} does not hold the heads of the network in {file}; expected two files of one export: "
            f"bllpipe export RUN FILE --heads HEADS"
        )
    shapes, objective, tokens = _described(metadata, heads)
    described = read_network(file)[0]
    num_classes = int(described["num_classes"])
    try:
        parts = cut(network_units_of(described, args), list(shapes))
        form = shapes, num_classes, Config(model=_model(described, args), objective=objective), tokens
        with torch.device("meta"):  # a file of a few bytes may describe heads of terabytes
            check_weights(_named(_built(*form)), weights, str(heads))
        made = _built(*form)
    except ConfigError as error:
        raise CheckpointError(f"{heads} holds heads of units that the network has not: {error}") from error
    fill(_named(made), weights, str(heads))
    blocks = [Segment(part, seed=0) for part in parts]
    for block in blocks:
        restore(block.state_dict(), network.state_dict())
    return Ensemble(blocks, [*made.values(), nn.Identity()]).eval()


def _built(shapes: Shapes, num_classes: int, config: Config, tokens: Mapping[str, Tokens]) -> dict[str, nn.Module]:
    return {
        unit: make_head(
            shape,
            num_classes,
            replace(config.objective, tokens=tokens.get(unit, "mean")),
            later=units_after(config, unit),
        )
        for unit, shape in shapes.items()
    }


def _named(heads: Mapping[str, nn.Module]) -> nn.Module:
    """The heads in one module, under the names of their units. It is no row of layers and only has their weights."""
    return Segment(units_from_modules(heads), seed=0)


def _described(metadata: Mapping[str, str], file: Path) -> tuple[Shapes, ObjectiveConfig, dict[str, Tokens]]:
    """What the heads read, and the keys that say how they are built; CheckpointError when there is nothing of it."""
    try:
        shapes = {str(unit): tuple(shape) for unit, shape in json.loads(metadata["heads"]).items()}
        objective = parse_config(with_moved_keys({"objective": json.loads(metadata["objective"])})).objective
        tokens: dict[str, Tokens] = json.loads(metadata.get("tokens", "{}"))
        if not all(each in ("class", "mean") for each in tokens.values()):
            raise ValueError(f"tokens {tokens!r:.80}")
        numbers = [number for shape in shapes.values() for number in shape]
        if not shapes or not all(type(number) is int and 1 <= number <= LARGEST for number in numbers):
            raise ValueError(f"alpha of shapes {shapes!r:.80}")
        if any(len(shape) not in (1, 2, 3) for shape in shapes.values()) or objective.head_layers > MOST_LAYERS:
            raise ValueError(f"alpha of shapes {shapes!r:.80}, {objective.head_layers} layers")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"the metadata of {file} describe no heads ({error!r:.200}); {FROM}") from error
    return shapes, objective, tokens
