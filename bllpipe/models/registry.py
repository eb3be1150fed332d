"""From a config to units: a ResNet by name, a function by its import path, or modules that a script has passed."""

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

GIVEN = "given"  # the package in the names of what scripts pass as objects


def network_units(model: ModelConfig, in_channels: int, num_classes: int, seed: int) -> list[Unit]:
    """The network of ``model`` for images of ``in_channels`` and ``num_classes`` scores, as units."""
    if ":" not in model.name:
        return resnet_units(model.name, model.width, model.stem, in_channels, num_classes)
    function: Callable[..., Any] = model.given or imported("model.name", model.name)
    with torch_defaults():
        torch.manual_seed(derived_seed(seed, "weights"))
        made = function(in_channels=in_channels, num_classes=num_classes, **model.args)
        modules = in_order(made, f"model.name={model.name} returned")  # a generator draws its weights only here
    check_network(modules, "the model")
    return units_from_modules(modules)


def last_width(config: Config, units: Sequence[Unit]) -> int | None:
    """How many channels the network of ``units`` ends with, where a local head has to know; None where none does, or
    where the last unit has no linear layer.

    Of a ResNet they are those of its last 3x3 convolutions: a bottleneck's last 1x1 makes four times as many. Of any
    other network they are what its last linear layer reads.
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

    Raises ConfigError, which begins with ``source``, for anything that does not say in which order it computes.
    """
    if isinstance(made, nn.Sequential):
        _check_sequential(made, source)
        return {name: module for name, module in made._modules.items() if module is not None}
    if isinstance(made, nn.Module) and not isinstance(made, nn.ModuleList):
        raise ConfigError(
            f"{source} {type(made).__name__}, whose forward may do more than its parts in a row; needed is an "
            f"nn.Sequential, or a list of torch.nn.Module, such as [model.stem, *model.layers, model.head]"
        )
    modules = list(made)
    if not modules or not all(isinstance(module, nn.Module) for module in modules):
        kinds = sorted({type(module).__name__ for module in modules}) or ["nothing"]
        raise ConfigError(f"{source} {', '.join(kinds)}; needed is a list of torch.nn.Module")
    return {str(number): module for number, module in enumerate(modules)}


def _check_sequential(made: nn.Sequential, source: str) -> None:
    if type(made).forward is not nn.Sequential.forward:
        raise ConfigError(
            f"{source} {type(made).__name__}, an nn.Sequential with a forward of its own, which a cut would lose; "
            f"needed is a plain one: put what its forward adds into a module"
        )
    if not len(made):
        raise ConfigError(f"{source} an empty nn.Sequential; needed is at least one module for every block")


def imported(key: str, name: str) -> Callable[..., Any]:
    """What ``name``, package.module:function, stands for; ConfigError, which names ``key``, when it cannot be had."""
    module_name, _, function_name = name.partition(":")
    if module_name == GIVEN:
        raise ConfigError(
            f"{key}={name} is what a script passed as an object, and only that script has it; run the script, or put "
            f"the function into a module and name it as package.module:function"
        )
    try:
        with torch_defaults():  # a module may set torch's defaults, or seed its random numbers, where it is imported
            function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{key}={name} cannot be imported: {error}; needed is package.module:function, "
            f"with the package on PYTHONPATH"
        ) from error
    if not callable(function):
        raise ConfigError(f"{key}={name} is a {type(function).__name__}; needed is a function")
    return function  # type: ignore[no-any-return]  # a callable of the user's, checked when it is called
