"""From a config to units: a ResNet by name, or a user's own function that returns an ordered list of modules."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bllpipe.config.schema import ModelConfig
from bllpipe.errors import ConfigError
from bllpipe.learn.resnet import resnet_units
from bllpipe.learn.units import Unit, units_from_modules
from bllpipe.randomness import derived_seed


def network_units(model: ModelConfig, in_channels: int, num_classes: int, seed: int) -> list[Unit]:
    """The network of ``model`` for images of ``in_channels`` and ``num_classes`` scores, as units."""
    if ":" not in model.name:
        return resnet_units(model.name, model.width, model.stem, in_channels, num_classes)
    function = _imported(model.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        modules = list(function(in_channels=in_channels, num_classes=num_classes, **model.args))
    if not modules or not all(isinstance(module, nn.Module) for module in modules):
        kinds = sorted({type(module).__name__ for module in modules}) or ["nothing"]
        raise ConfigError(f"model.name={model.name} returned {', '.join(kinds)}; needed is a list of torch.nn.Module")
    return units_from_modules(modules)


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"model.name={name} cannot be imported: {error}; needed is package.module:function, "
            f"with the package on PYTHONPATH"
        ) from error
    if not callable(function):
        raise ConfigError(f"model.name={name} is a {type(function).__name__}; needed is a function")
    return function  # type: ignore[no-any-return]  # a callable of the user's, checked when it is called
