"""From a config to units: a ResNet by name, a function by its import path, or modules passed as an object."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bllpipe.config.schema import LAST_STAGE, Config, ModelConfig
from bllpipe.errors import ConfigError
from bllpipe.models.checks import check_network
from bllpipe.models.resnet import resnet_units
from bllpipe.models.units import Unit, units_from_modules
from bllpipe.utils.tensors import derived_seed
from bllpipe.utils.torch_state import torch_defaults

USER_OBJECTS = "given"  # in place of a package, in the names of objects that a script passes


def network_units(model: ModelConfig, in_channels: int, num_classes: int, seed: int) -> list[Unit]:
    """The network of ``model`` for images of ``in_channels`` and ``num_classes`` scores, as units."""
    if ":" not in model.name:
        return resnet_units(model.name, model.width, model.stem, in_channels, num_classes)
    function: Callable[..., Any] = model.user_model or imported("model.name", model.name)
    with torch_defaults():
        torch.manual_seed(derived_seed(seed, "weights"))
        network = function(in_channels=in_channels, num_classes=num_classes, **model.args)
        modules = in_order(network, f"model.name={model.name} returned")  # a generator draws its weights only here
    check_network(modules, "the model")
    return units_from_modules(modules)


def last_width(config: Config, units: Sequence[Unit]) -> int | None:
    """The number of channels at the end of the network of ``units``, for strided heads; None for other heads, or if the
    last unit has no linear layer.

    For a ResNet it is that of its last 3x3 convolutions: a bottleneck's last 1x1 has four times as many. For any other
    network it is the number of input features of its last linear layer.
    """
    if config.objective.head != "strided":
        return None
    if ":" not in config.model.name:
        return config.model.width * LAST_STAGE
    modules = [module for layer in units[-1].layers for module in layer.make().modules()]
    widths = [module.in_features for module in modules if isinstance(module, nn.Linear)]
    return widths[-1] or None if widths else None  # 0 in a lazy layer


def in_order(made: Any, source: str) -> dict[str, nn.Module]:
    """The modules of an nn.Sequential by their names there, those of any other sequence by their number.

    Raises ConfigError, which begins with ``source``, for anything without an order of computation.
    """
    if isinstance(made, nn.Sequential):
        if type(made).forward is not nn.Sequential.forward:
            raise ConfigError(
                f"{source} {type(made).__name__}, an nn.Sequential with its own forward, which a cut would drop; "
                f"expected a plain one; use a module for what its forward adds"
            )
        if not len(made):
            raise ConfigError(f"{source} an empty nn.Sequential; expected at least one module for every block")
        return {name: module for name, module in made._modules.items() if module is not None}
    if isinstance(made, nn.Module) and not isinstance(made, nn.ModuleList):
        raise ConfigError(
            f"{source} {type(made).__name__}, whose forward may do more than call its parts in order; expected an "
            f"nn.Sequential, or a list of torch.nn.Module, such as [model.stem, *model.layers, model.head]"
        )
    modules = list(made)
    if not modules or not all(isinstance(module, nn.Module) for module in modules):
        kinds = sorted({type(module).__name__ for module in modules}) or ["nothing"]
        raise ConfigError(f"{source} {', '.join(kinds)}; expected a list of torch.nn.Module")
    return {str(number): module for number, module in enumerate(modules)}


def imported(key: str, name: str) -> Callable[..., Any]:
    """The function ``name``, package.module:function; ConfigError, which names ``key``, if it cannot be imported."""
    module_name, _, function_name = name.partition(":")
    if module_name == USER_OBJECTS:
        raise ConfigError(
            f"{key}={name} is an object that a script passed, and exists in that script only; run the script, or use a "
            f"function in a module, named as package.module:function"
        )
    try:
        with torch_defaults():  # an imported module may set torch's defaults, or seed its random numbers
            function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{key}={name} cannot be imported: {error}; expected package.module:function, "
            f"with the package on PYTHONPATH"
        ) from error
    if not callable(function):
        raise ConfigError(f"{key}={name} is a {type(function).__name__}; expected a function")
    return function  # type: ignore[no-any-return]  # a callable of the user's, checked when it is called
