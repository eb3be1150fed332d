"""Imported last by the process from which tests fork: what its forks would import and work out again, each for itself.

All that is nothing for the garbage collectors of the forks, which would copy it, as they write to what they look at."""

from __future__ import annotations

from importlib import import_module

from bllpipe.config import load_config
from tests.support import quick

LATE = (
    "rich.console",
    "numpy.ctypeslib",
    "bllpipe.engines.ddp",
    "bllpipe.engines.streams",
    "bllpipe.engines.torch_pipeline",
)

for name in LATE:
    import_module(name)
load_config(None)  # the types of all keys are found once
quick.without_stacks_of_seeds()
quick.find_plugins_once()
quick.freeze()
