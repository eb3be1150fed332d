"""Train deep networks as pipelines of blocks that never wait for a backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bllpipe.version import __version__ as __version__

if TYPE_CHECKING:
    from bllpipe.errors import BllpipeError, CheckpointError, ConfigError, DataError
    from bllpipe.learn.channels import channel_means
    from bllpipe.library.models import cut
    from bllpipe.library.planning import CutPlan, make_plan
    from bllpipe.library.results import Run
    from bllpipe.library.training import train
    from bllpipe.ports import Target

__all__ = [
    "BllpipeError",
    "CheckpointError",
    "ConfigError",
    "CutPlan",
    "DataError",
    "Run",
    "Target",
    "channel_means",
    "cut",
    "make_plan",
    "train",
]

# Where each name lives. Its module, and torch with it, is imported when somebody asks for the name.
_HOMES = {
    "BllpipeError": "errors",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "CutPlan": "library.planning",
    "DataError": "errors",
    "Run": "library.results",
    "Target": "ports",
    "channel_means": "learn.channels",
    "cut": "library.models",
    "make_plan": "library.planning",
    "train": "library.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bllpipe' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(f"bllpipe.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
