"""A network as an ordered list of units, of which any consecutive ones make a block.

A unit is what a cut never divides: one residual unit, with the stem in front of the first and the classifier behind
the last. Nothing is built before it is needed, so a rank only ever holds its own block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bllpipe.utils.tensors import derived_seed


@dataclass(frozen=True)
class Layer:
    """One module and the name under which the whole network knows it, such as ``layer1.0``."""

    path: str
    make: Callable[[], nn.Module]


@dataclass(frozen=True)
class Unit:
    """Consecutive layers that stay together; ``name`` is what a cut can refer to. Of a network of the user's own a unit
    is one module, which ``is_built`` already."""

    name: str
    layers: tuple[Layer, ...]
    is_built: bool = False


class Segment(nn.Module):
    """Consecutive units, built: parameters have the names, and for one seed the values, that they have in the whole
    network, wherever it is cut."""

    def __init__(self, units: Sequence[Unit], seed: int) -> None:
        super().__init__()
        self.last_unit = units[-1].name
        self.unit_ends = [unit.layers[-1].path for unit in units]
        self._paths = [layer.path for unit in units for layer in unit.layers]
        for layer in (layer for unit in units for layer in unit.layers):
            _place(self, layer, seed)

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] of the block before to the alpha of this one."""
        for path in self._paths:
            x = self.get_submodule(path)(x)
        return x


def units_from_modules(modules: Mapping[str, nn.Module]) -> list[Unit]:
    """One unit a module; parameters are called as in an nn.Sequential of modules with these names."""

    def keep(module: nn.Module) -> Callable[[], nn.Module]:
        return lambda: module

    return [Unit(name, (Layer(name, keep(module)),), is_built=True) for name, module in modules.items()]


def _place(root: nn.Module, layer: Layer, seed: int) -> None:
    """Builds the layer from its own random stream and hangs it into ``root`` under its path."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights", layer.path))
        module = layer.make()
    *parents, leaf = layer.path.split(".")
    node = root
    for name in parents:
        if name not in dict(node.named_children()):
            node.add_module(name, nn.Module())
        node = node.get_submodule(name)
    node.add_module(leaf, module)
