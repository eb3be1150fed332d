"""The network and the local loss of a script (modules in a row, a function, a class or a name) and their names in the
configuration; a script's arguments as the plain values of a YAML file.
"""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

import numpy as np
from torch import Tensor, nn

from bllpipe.errors import ConfigError
from bllpipe.learn.losses import Objective
from bllpipe.models.partition import bounds
from bllpipe.models.registry import USER_OBJECTS, check_has_values, check_network, in_order
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
    """The text of a path; ConfigError, which ends with ``hint``, for anything else."""
    if not isinstance(value, (str, PathLike)) or isinstance(fspath(value), bytes):
        raise ConfigError(f"{name} is a {type(value).__name__}; expected text or a path; {hint}")
    if "\0" in (text := fspath(value)):
        raise ConfigError(f"{name} is {text!r:.200}; expected a path without null characters; {hint}")
    return text


Modules = nn.Sequential | nn.ModuleList | Sequence[nn.Module]
Model = Modules | Callable[..., Iterable[nn.Module]] | str
# Every block makes an instance of a class: (config.objective, alpha_shape, num_classes).
UserObjective = Objective | type[nn.Module] | str


@dataclass(frozen=True)
class UserModules:
    """Modules that a script has built. They are trained in place, from their own weights."""

    modules: Mapping[str, nn.Module]

    def __call__(self, in_channels: int, num_classes: int, **args: Any) -> nn.Sequential:
        if args:
            raise ConfigError(
                f"model.args are for a function that makes a network, but the model is one already, and {sorted(args)} "
                f"would change nothing; leave them out"
            )
        return nn.Sequential(OrderedDict(self.modules))

    def digest(self) -> str:
        """SHA-256 (hex) of all weights: equal in all ranks if they drew the same numbers."""
        return part_digest(nn.Sequential(OrderedDict(self.modules)).state_dict())


def user_model(model: Model) -> tuple[str, Callable[..., Any] | None]:
    """``model.name``, and the network passed as an object; ConfigError for one that cannot be cut."""
    if isinstance(model, str):
        return model, None
    if isinstance(model, (nn.Module, list, tuple)):
        return f"{USER_OBJECTS}:network", UserModules(modules_of(model))
    if not callable(model):
        raise ConfigError(
            f"the model is a {type(model).__name__}; expected an nn.Sequential, a list of modules, a function "
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


def cut(model: Modules, blocks: int | Sequence[int | str]) -> list[nn.Sequential]:
    """The blocks of a network, which share its modules.

    Args:
        model: an nn.Sequential, whose children have names, or a list of modules, which are numbered.
        blocks: how many, of equal numbers of modules; or the cuts: after how many modules, or after the one of which
            name.

    Raises ConfigError for a network that cannot be cut, or not there.
    """
    modules = modules_of(model)
    names = list(modules)
    blocks = plain(blocks)
    if not isinstance(blocks, (int, list)):
        raise ConfigError(f"blocks is {blocks!r}; cut takes a number or a list, and bllpipe.make_plan finds even cuts")
    parts = [names[start:end] for start, end in bounds(names, blocks)]
    return [nn.Sequential(OrderedDict((name, modules[name]) for name in part)) for part in parts]


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
