"""A network as an ordered list of units; any consecutive units make a block.

A cut never divides a unit: one residual unit, with the stem before the first and the classifier after the last.
Modules are built when a segment is, so a rank holds its own block only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bllpipe.errors import ConfigError
from bllpipe.utils.tensors import derived_seed

Code = Callable[[nn.Module, Tensor], Tensor]
Run = Callable[[Tensor], Tensor]  # from the input of a unit to its output


@dataclass(frozen=True)
class Layer:
    """One module and its name in the whole network, such as ``layer1.0``."""

    path: str
    make: Callable[[], nn.Module]


@dataclass(frozen=True)
class Unit:
    """Consecutive layers that stay together; ``name`` is what a cut can refer to. In a user-defined network a unit is
    one module, which ``is_built`` already."""

    name: str
    layers: tuple[Layer, ...]
    is_built: bool = False
    shape: tuple[int, ...] | None = None  # of its output, without the batch, if the network was traced
    has_class_token: bool = False  # its output are tokens, and the network's scores depend on the first alone


class Stretch(nn.Module):
    """Part of a network that was traced (models/stretches.py): modules and tensors by their paths in the network, and
    the code of each mode, a function (module that has the parts, input) -> output."""

    def __init__(
        self,
        parts: Mapping[str, nn.Module | Tensor],
        training: Code,
        evaluation: Code,
        unsaved: frozenset[str] = frozenset(),  # tensors that no state_dict has
        is_random: bool = False,  # draws random numbers in training
        has_layers: bool = True,  # not of torch.export, which has functions alone
    ) -> None:
        super().__init__()
        # names that no module of a network has
        self.stretch_parts, self.stretch_codes = dict(parts), {True: training, False: evaluation}
        self.stretch_unsaved, self.stretch_is_random, self.stretch_has_layers = unsaved, is_random, has_layers
        attach(self, parts, unsaved)

    def forward(self, x: Tensor) -> Tensor:
        return self.stretch_codes[self.training](self, x)


class Segment(nn.Module):
    """Consecutive units, built: parameters have the names, and for one seed the values, that they have in the whole
    network, wherever it is cut. ``output_hooks`` are applied to the outputs of layers, by path. ``may_draw``: whether a
    unit may draw random numbers in training. ``on_unit`` is called with the number of every unit that has been built,
    before the next one is."""

    def __init__(
        self, units: Sequence[Unit], seed: int, on_unit: Callable[[Segment, int], object] = lambda segment, number: None
    ) -> None:
        super().__init__()
        self.last_unit, self.has_class_token = units[-1].name, units[-1].has_class_token
        self.unit_ends = [unit.layers[-1].path for unit in units]
        self.output_hooks: dict[str, Callable[[Tensor], Tensor]] = {}
        self.may_draw: Callable[[], bool] = lambda: True
        self._codes: dict[str, dict[bool, Code]] = {}  # of stretches, by training mode
        self._paths = [[layer.path for layer in unit.layers] for unit in units]
        self._module_paths: list[list[str]] = [[] for _ in units]
        self._runs: list[Run] = []  # if they are not ``run_unit``
        self._user_paths: list[str] = []
        self.has_layers = True  # modules for convolutions and products
        for number, unit in enumerate(units):
            for layer in unit.layers:
                self._module_paths[number] += self._add(layer, seed, unit.is_built)
            on_unit(self, number)

    def forward(self, x: Tensor) -> Tensor:
        """From the alpha of the block before, [B, ...], to the alpha of this one."""
        for number in range(len(self._paths)):
            x = self._runs[number](x) if self._runs else self.run_unit(number, x)
        return x

    def run_unit(self, number: int, x: Tensor) -> Tensor:
        """From the input of one unit to its output."""
        for path in self._paths[number]:
            code = self._codes.get(path)
            x = self.get_submodule(path)(x) if code is None else code[self.training](self, x)
            if path in self.output_hooks:
                x = self.output_hooks[path](x)
        return x

    def wrap_units(self, wrap: Callable[[int, Run], Run]) -> None:
        """From now on every unit computes with ``wrap(its number, what it computed with before)``."""
        runs = self._runs or [partial(self.run_unit, number) for number in range(len(self._paths))]
        self._runs = [wrap(number, run) for number, run in enumerate(runs)]

    def modules_of(self, number: int) -> list[nn.Module]:
        """The modules of one unit. A traced network may have tensors that belong to none of them."""
        return [self.get_submodule(path) for path in self._module_paths[number]]

    def _add(self, layer: Layer, seed: int, is_built: bool) -> list[str]:
        """Builds the layer from its own random stream; the paths of its modules."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "weights", layer.path))
            module = layer.make()
        parts: Mapping[str, nn.Module | Tensor] = {layer.path: module}
        if isinstance(module, Stretch):
            parts, self._codes[layer.path] = module.stretch_parts, module.stretch_codes
            self.has_layers &= module.stretch_has_layers
        paths = [path for path, part in parts.items() if isinstance(part, nn.Module)]
        if is_built:
            self._user_paths += paths
        attach(self, parts, module.stretch_unsaved if isinstance(module, Stretch) else frozenset())
        return paths

    def detach_structure(self) -> None:
        """Replaces user-defined modules by copies that share their parameters, buffers and hooks: from now on layers
        inside them can be replaced, and a script's own modules do not change. Raises ConfigError for a module that
        cannot be copied."""
        for path in self._user_paths:
            try:
                self.set_submodule(path, _structure_copy(self.get_submodule(path)))
            except Exception as error:  # attributes of a user's module may raise any error
                raise ConfigError(
                    f"module {path} of the model: expected a module that can be copied, as layers in it are replaced, "
                    f"got {error!s:.200}; use --set method=bp and --set gpu.deterministic=false, or remove what cannot "
                    f"be copied"
                ) from error
        self._user_paths = []


def one_row_each(alpha: object, x: Tensor, segment: Segment) -> Tensor:
    """alpha, the output of ``segment`` for a batch ``x``. Its shape was inferred from one image, in evaluation mode:
    raises ConfigError unless it has a row for each image."""
    if not isinstance(alpha, Tensor) or alpha.dim() == 0 or len(alpha) != len(x):
        got = f"the shape {list(alpha.shape)}" if isinstance(alpha, Tensor) else f"a {type(alpha).__name__}"
        units = "unit" if len(segment.unit_ends) == 1 else "units up to"
        raise ConfigError(
            f"{units} {segment.last_unit}: expected one tensor with a row for each image of a batch, got {got} for "
            f"{len(x)} images in {'training' if segment.training else 'evaluation'} mode; use a forward that keeps the "
            f"first dimension"
        )
    return alpha


def units_from_modules(modules: Mapping[str, nn.Module]) -> list[Unit]:
    """One unit a module; parameters have the names of an nn.Sequential of modules with these names."""

    def keep(module: nn.Module) -> Callable[[], nn.Module]:
        return lambda: module

    return [Unit(name, (Layer(name, keep(module)),), is_built=True) for name, module in modules.items()]


def _structure_copy(module: nn.Module) -> nn.Module:
    """A copy of ``module`` and of all modules in it, with the same tensors and hooks. It shares the dictionaries of
    them too: a buffer that moves to a GPU moves in both."""
    shared: list[Any] = [*module.parameters(), *module.buffers()]
    for part in module.modules():
        shared += [part._parameters, part._buffers]
        shared += [value for name, value in vars(part).items() if name.endswith("_hooks")]
    return deepcopy(module, {id(each): each for each in shared})


def attach(root: nn.Module, parts: Mapping[str, nn.Module | Tensor], unsaved: frozenset[str]) -> None:
    """Adds modules, parameters and buffers to ``root`` under their paths, those first that contain others; the buffers
    ``unsaved`` are in no state_dict. Raises ConfigError for a name that ``root`` itself uses."""
    for name in sorted({path.partition(".")[0] for path in parts}):
        if name in vars(root) or hasattr(type(root), name):
            raise ConfigError(
                f"the model has a module or tensor with the name {name}, which blocks use themselves; use another name "
                f"for it"
            )
    for path, part in sorted(parts.items()):
        *parents, leaf = path.split(".")
        node = root
        for name in parents:
            if name not in node._modules:
                node.add_module(name, nn.Module())
            node = node.get_submodule(name)
        if isinstance(part, nn.Module):
            if leaf not in node._modules:
                node.add_module(leaf, part)
        elif isinstance(part, nn.Parameter):
            node.register_parameter(leaf, part)
        elif leaf not in vars(node) and leaf not in node._buffers:
            node.register_buffer(leaf, part, persistent=path not in unsaved)
