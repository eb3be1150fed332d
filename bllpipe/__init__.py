"""Train deep networks as pipelines of blocks that never wait for a backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bllpipe.version import __version__ as __version__

if TYPE_CHECKING:
    from bllpipe.api.models import cut
    from bllpipe.api.plan import CutPlan, make_plan
    from bllpipe.api.train import Run, train
    from bllpipe.errors import BllpipeError, CheckpointError, ConfigError, DataError
    from bllpipe.learn.distributions import channel_means
    from bllpipe.messages import Target
    from bllpipe.tools.analysis.network_file import load_ensemble, load_network

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
    "load_ensemble",
    "load_network",
    "make_plan",
    "train",
]

# Where each name lives. Its module, and torch with it, is imported when the name is used.
_HOMES = {
    "BllpipeError": "errors",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "CutPlan": "api.plan",
    "DataError": "errors",
    "Run": "api.train",
    "Target": "messages",
    "channel_means": "learn.distributions",
    "cut": "api.models",
    "load_ensemble": "tools.analysis.network_file",
    "load_network": "tools.analysis.network_file",
    "make_plan": "api.plan",
    "train": "api.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bllpipe' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(f"bllpipe.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
