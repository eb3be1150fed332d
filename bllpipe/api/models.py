"""The network and the local loss of a script (modules in a row, a function, a class or a name) and their names in the
configuration; a script's arguments as the plain values of a YAML file.
"""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from os.path import expanduser
from typing import Any, overload

import numpy as np
from torch import Tensor, nn

from bllpipe.errors import ConfigError
from bllpipe.learn.losses import Objective
from bllpipe.models.partition import bounds
from bllpipe.models.registry import USER_OBJECTS, check_has_values, check_network, in_order, is_traced, network_plan
from bllpipe.models.units import Segment, Unit
from bllpipe.utils.tensors import part_digest


def plain(value: Any) -> Any:
    """Lists for tuples, ranges and arrays; Python's numbers and text for those of NumPy and torch; paths as text."""
    if isinstance(value, (np.generic, np.ndarray, Tensor)):
        return value.tolist()
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (tuple, list, range)) else value


def whole_number(name: str, value: Any, least: int) -> int:
    """An argument that is a whole number of at least ``least``; ConfigError for anything else."""
    number = plain(value)
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        raise ConfigError(f"{name} is {number!r:.80}; expected at least {least}, a whole number")
    return number


def path_text(name: str, value: Any, hint: str) -> str:
    """The text of a path, with the home directory for ~; ConfigError, which ends with ``hint``, for anything else."""
    if not isinstance(value, (str, PathLike)) or isinstance(fspath(value), bytes):
        raise ConfigError(f"{name} is a {type(value).__name__}; expected text or a path; {hint}")
    if "\0" in (text := fspath(value)):
        raise ConfigError(f"{name} is {text!r:.200}; expected a path without null characters; {hint}")
    return expanduser(text)


Modules = nn.Sequential | nn.ModuleList | Sequence[nn.Module]
Model = nn.Module | Modules | Callable[..., nn.Module | Iterable[nn.Module]] | str
# Every block makes an instance of a class: (config.objective, alpha_shape, num_classes).
UserObjective = Objective | type[nn.Module] | str


@dataclass(frozen=True)
class UserModules:
    """Modules that a script has built. They are trained in place, from their own weights."""

    modules: Mapping[str, nn.Module]

    def __call__(self, in_channels: int, num_classes: int, **args: Any) -> nn.Sequential:
        check_no_args(args)
        return nn.Sequential(OrderedDict(self.modules))

    def digest(self) -> str:
        """SHA-256 (hex) of all weights: equal in all ranks if they drew the same numbers."""
        return part_digest(nn.Sequential(OrderedDict(self.modules)).state_dict())


@dataclass(frozen=True, eq=False)
class UserNetwork:
    """A network with a ``forward`` of its own that a script has built; it is traced to find where it can be cut, once
    for each shape of images. Its modules are trained in place."""

    network: nn.Module
    plans: dict[tuple[int, ...], Any] = field(default_factory=dict)

    def __call__(self, in_channels: int, num_classes: int, **args: Any) -> nn.Module:
        check_no_args(args)
        return self.network

    def digest(self) -> str:
        """SHA-256 (hex) of all weights: equal in all ranks if they drew the same numbers."""
        return part_digest(self.network.state_dict())


def check_no_args(args: Mapping[str, Any]) -> None:
    """Raises ConfigError for ``model.args`` of a network that is built already."""
    if args:
        raise ConfigError(
            f"model.args are for a function that makes a network, but the model is one already, and {sorted(args)} "
            f"would change nothing; leave them out"
        )


def user_model(model: Model) -> tuple[str, Callable[..., Any] | None]:
    """``model.name``, and the network passed as an object; ConfigError for one that cannot be cut."""
    if isinstance(model, str):
        return model, None
    if is_traced(model):
        return f"{USER_OBJECTS}:network", UserNetwork(checked_network(model))
    if isinstance(model, (nn.Module, list, tuple)):
        return f"{USER_OBJECTS}:network", UserModules(modules_of(model))
    if not callable(model):
        raise ConfigError(
            f"the model is a {type(model).__name__}; expected an nn.Module, a list of modules, a function "
            f"(in_channels, num_classes) that returns one, or a name such as resnet18"
        )
    name = importable_name(model)
    return (name, None) if name else (object_name(model), model)


def modules_of(model: Modules | nn.Module) -> dict[str, nn.Module]:
    """The modules of a network by name, all of them ready to be trained alone; ConfigError when they are not, or when
    there is no saying in which order they compute."""
    modules = in_order(model, "the model is")
    check_network(modules, "the model")
    for name, module in modules.items():
        check_has_values(module, f"module {name}")
    return modules


def checked_network(network: nn.Module) -> nn.Module:
    """The same network, ready to be trained; ConfigError when it is not."""
    name = type(network).__name__
    check_network({name: network}, "the model")
    check_has_values(network, name)
    return network


@overload
def cut(model: Modules, blocks: int | Sequence[int | str]) -> list[nn.Sequential]: ...


@overload
def cut(model: nn.Module, blocks: int | Sequence[int | str], image_shape: Sequence[int]) -> list[Segment]: ...


def cut(
    model: Modules | nn.Module, blocks: int | Sequence[int | str], image_shape: Sequence[int] | None = None
) -> Sequence[nn.Module]:
    """The blocks of a network, which share its modules.

    Args:
        model: any nn.Module; the children of an nn.Sequential have names, the modules of a list are numbered.
        blocks: how many, of equal numbers of modules; or the cuts: after how many modules, or after the one of which
            name.
        image_shape: [C, H, W] of an image, which a network with a ``forward`` of its own is traced for.

    Raises ConfigError for a network that cannot be cut, or not there.
    """
    blocks = plain(blocks)
    if not isinstance(blocks, (int, list)):
        raise ConfigError(f"blocks is {blocks!r}; cut takes a number or a list, and bllpipe.make_plan finds even cuts")
    if is_traced(model):
        units = traced_units(model, image_shape)
        return [Segment(units[start:end], seed=0) for start, end in bounds([unit.name for unit in units], blocks)]
    modules = modules_of(model)
    names = list(modules)
    parts = [names[start:end] for start, end in bounds(names, blocks)]
    return [nn.Sequential(OrderedDict((name, modules[name]) for name in part)) for part in parts]


def traced_units(network: nn.Module, image_shape: Sequence[int] | None) -> list[Unit]:
    """The units of a network with a ``forward`` of its own, for images of ``image_shape``."""
    if image_shape is None:
        raise ConfigError(
            f"the model is {type(network).__name__}, which is traced with images to find where it can be cut; expected "
            f"their shape; use image_shape=(3, 224, 224)"
        )
    shape = tuple(whole_number("image_shape", size, 1) for size in image_shape)
    plan = network_plan(UserNetwork(checked_network(network)), {}, shape, 0, 0, "the model is")
    return plan.units(network)


def importable_name(thing: Any) -> str | None:
    """package.module:name if any process can import it so; None for what lives in the script itself or in another
    function."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if module in (None, "__main__") or name is None:
        return None
    return f"{module}:{name}" if getattr(sys.modules.get(module), name, None) is thing else None


def object_name(thing: Any) -> str:
    """``given:Sequential``, ``given:my_loss``: the name of a function or class, or of the kind of an object."""
    name = getattr(thing, "__name__", type(thing).__name__)
    return f"{USER_OBJECTS}:{re.sub(r'[^0-9A-Za-z_]', '_', name)}"


def user_objective(objective: UserObjective) -> tuple[dict[str, Any], Any]:
    """The keys that name it, and the loss passed as an object; ConfigError for anything that is no local loss."""
    if isinstance(objective, str):
        keys = {"method": "own", "objective.function": objective} if ":" in objective else {"method": objective}
        return keys, None
    if isinstance(objective, nn.Module) or not callable(objective):
        raise ConfigError(
            f"the objective is a {type(objective).__name__}; expected a function (alpha, scores, target, x) that "
            f"returns a dict of terms, a class of modules with such a forward, of which every block makes its own, or "
            f"the name of a method, such as dgl"
        )
    name = importable_name(objective)
    keys = {"method": "own", "objective.function": name or object_name(objective)}
    return keys, None if name else objective
