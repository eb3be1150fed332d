"""``model.weights``: the weights of a pretrained network from a safetensors file, by the names of its state_dict.

All tensors must be those of the network, with one exception: a classifier for another number of classes is left out,
and the network's own begins with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bllpipe.errors import ConfigError
from bllpipe.models.units import Layer, Segment, Unit
from bllpipe.utils.tensors import dtype_and_shape

MOST_NAMED = 4


def with_weights(units: Sequence[Unit], path: str) -> list[Unit]:
    """The same units with the weights of the file at ``path``: built modules are changed in place, others when they
    are built. Raises ConfigError for a file that does not fit."""
    weights = read_weights(path)
    for name in left_out(units, path, weights):
        del weights[name]
    built = [unit for unit in units if unit.is_built]
    if built:
        _fill(Segment(built, seed=0).state_dict(), weights)
    return [unit if unit.is_built else _loading(unit, weights) for unit in units]


def left_out(units: Sequence[Unit], path: str, weights: Mapping[str, Tensor] | None = None) -> list[str]:
    """The tensors of the file that belong to a classifier for another number of classes; ConfigError for any other
    difference from the network."""
    weights = read_weights(path) if weights is None else weights
    with torch.device("meta"):  # what is not built yet is not built for this
        own = Segment(units, seed=0).state_dict()
    if missing := sorted(own.keys() - weights.keys()):
        raise ConfigError(f"model.weights={path} lacks {_some(missing)}; {EXPECTED}")
    if unknown := sorted(weights.keys() - own.keys()):
        raise ConfigError(f"model.weights={path} also holds {_some(unknown)}, which the network lacks; {EXPECTED}")
    other = [name for name in own if dtype_and_shape(own[name]) != dtype_and_shape(weights[name])]
    sizes = {weights[name].shape[0] if weights[name].dim() else 0 for name in other}
    for name in other:
        ours, theirs = own[name], weights[name]
        # any other layer of another width would also differ from the one that reads it, in its second dimension
        is_classifier = len(sizes) == 1 and ours.dim() and ours.shape[1:] == theirs.shape[1:]
        if not is_classifier or ours.dtype != theirs.dtype:
            raise ConfigError(
                f"model.weights={path} holds {name} as {dtype_and_shape(theirs)}, but the network needs "
                f"{dtype_and_shape(ours)}; {EXPECTED}"
            )
    return other


EXPECTED = "expected a file of exactly this network's state_dict; use the model.name and model.args of the file"


def note(names: Sequence[str], path: str, num_classes: int) -> str:
    """What a classifier for another number of classes means, in words."""
    return (
        f"model.weights={path} is for another number of classes: {_some(names)} begin with random weights, for "
        f"{num_classes} classes; all other weights are those of the file"
    )


def read_weights(path: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ConfigError for anything else."""
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        hint = "" if Path(path).suffix == ".safetensors" else " (of safetensors.torch.save_file, not of torch.save)"
        raise ConfigError(
            f"model.weights={path} cannot be read: {error!s:.200}; expected a safetensors file{hint}"
        ) from error


def _loading(unit: Unit, weights: Mapping[str, Tensor]) -> Unit:
    def loaded(layer: Layer) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            module = layer.make()
            own = {f"{layer.path}.{name}": value for name, value in module.state_dict().items()}
            _fill(own, weights)
            return module

        return make

    return replace(unit, layers=tuple(Layer(layer.path, loaded(layer)) for layer in unit.layers))


@torch.no_grad()
def _fill(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name in own.keys() & weights.keys():
        if not own[name].is_meta:
            own[name].copy_(weights[name])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
