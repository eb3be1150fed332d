"""A user's own function, by the name that a config gives it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from bllpipe.errors import ConfigError
from bllpipe.torch_state import torch_defaults

GIVEN = "given"  # the package in the names of what scripts pass as objects


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
