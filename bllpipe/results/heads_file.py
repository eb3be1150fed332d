"""The local heads of a run as one safetensors file beside that of its network, and both together as one module: the
ensemble of all exits.

Shapes: B images, C channels, H x W positions, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bllpipe.config import parse_config, to_mapping
from bllpipe.config.schema import ObjectiveConfig
from bllpipe.errors import CheckpointError, ConfigError
from bllpipe.learn.block import Block, add_votes, alpha_shape
from bllpipe.learn.cuts import cut
from bllpipe.learn.heads import make_head
from bllpipe.learn.saved import restore
from bllpipe.learn.units import Segment, units_from_modules
from bllpipe.results.finished import FinishedRun
from bllpipe.results.network_file import (
    FROM,
    LARGEST,
    check_weights,
    describe,
    fill,
    load_network,
    network_units_of,
    read_network,
)
from bllpipe.run.digest import part_digest

MOST_LAYERS = 1000  # of a head
Shapes = dict[str, tuple[int, ...]]  # of alpha, without the batch, by the unit that a head reads


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
    objective = {key: value for key, value in to_mapping(run.config.objective).items() if key.startswith("head")}
    network = {name: value for block in blocks for name, value in block.segment.state_dict().items()}
    metadata = {
        **describe(run),
        "heads": json.dumps(shapes),
        "objective": json.dumps(objective),
        "network_sha256": part_digest(network),
    }
    return metadata, _named({block.segment.last_unit: block.head for block in blocks[:-1]}).state_dict()


def load_ensemble(file: Path, heads: Path, args: Mapping[str, Any] | None = None) -> Ensemble:
    """The network in ``file`` with its ``heads``, in evaluation mode: two files that one ``bllpipe export`` has
    written. ``args`` as in ``load_network``.

    Raises CheckpointError when a file cannot be read, or the heads are none or those of another network.
    """
    network = load_network(file, args)
    metadata, weights = read_network(heads)
    if metadata.get("network_sha256") != part_digest(network.state_dict()):
        raise CheckpointError(
            f"{heads} does not hold the heads of the network in {file}; expected two files of one export: "
            f"bllpipe export RUN FILE --heads HEADS"
        )
    shapes, objective = _described(metadata, heads)
    described = read_network(file)[0]
    num_classes = int(described["num_classes"])
    with torch.device("meta"):  # a file of a few bytes may describe heads of terabytes
        check_weights(_named(_built(shapes, num_classes, objective)), weights, str(heads))
    made = _built(shapes, num_classes, objective)
    fill(_named(made), weights, str(heads))
    try:
        parts = cut(network_units_of(described, args), list(shapes))
    except ConfigError as error:
        raise CheckpointError(f"{heads} holds heads of units that the network has not: {error}") from error
    blocks = [Segment(part, seed=0) for part in parts]
    for block in blocks:
        restore(block.state_dict(), network.state_dict())
    return Ensemble(blocks, [*made.values(), nn.Identity()]).eval()


def _built(shapes: Shapes, num_classes: int, objective: ObjectiveConfig) -> dict[str, nn.Module]:
    return {unit: make_head(shape, num_classes, objective) for unit, shape in shapes.items()}


def _named(heads: Mapping[str, nn.Module]) -> nn.Module:
    """The heads in one module, under the names of their units. It is no row of layers and only has their weights."""
    return Segment(units_from_modules(heads), seed=0)


def _described(metadata: Mapping[str, str], file: Path) -> tuple[Shapes, ObjectiveConfig]:
    """What the heads read, and the keys that say how they are built; CheckpointError when there is nothing of it."""
    try:
        shapes = {str(unit): tuple(shape) for unit, shape in json.loads(metadata["heads"]).items()}
        objective = parse_config({"objective": json.loads(metadata["objective"])}).objective
        numbers = [number for shape in shapes.values() for number in shape]
        if not shapes or not all(type(number) is int and 1 <= number <= LARGEST for number in numbers):
            raise ValueError(f"alpha of shapes {shapes!r:.80}")
        if any(len(shape) not in (1, 2, 3) for shape in shapes.values()) or objective.head_layers > MOST_LAYERS:
            raise ValueError(f"alpha of shapes {shapes!r:.80}, {objective.head_layers} layers")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"the metadata of {file} describe no heads ({error!r:.200}); {FROM}") from error
    return shapes, objective
