"""What takes longer than a short run and is of use to none is left out of all tests, and of all their forks."""

from __future__ import annotations

import gc
from importlib import metadata
from types import SimpleNamespace

import torch

_count = gc.get_freeze_count


def without_stacks_of_seeds() -> None:
    """For every seed torch writes down the whole stack, once for each kind of device that may be initialized later."""
    for device in (torch.cuda, torch.xpu, torch.mtia):
        setattr(device, "traceback", SimpleNamespace(format_stack=list))  # noqa: B010  # not for type checkers


def find_plugins_once() -> None:
    """Every rank looks into all installed packages for backends of torch.distributed: here one look is for all."""
    find, found = metadata.entry_points, metadata.entry_points(group="torch.distributed.backends")
    asked = {"group": "torch.distributed.backends"}
    setattr(metadata, "entry_points", lambda **of: found if of == asked else find(**of))  # noqa: B010


def freeze() -> None:
    """All objects that there are now stay to the end of the process, or to ``thaw``, and no garbage collector looks at
    them. Every run asks twice how many they are, for which it goes through each of them, a third of the processor time
    of a rank of five steps: here the number is known."""
    gc.collect()
    gc.freeze()
    number = _count()
    setattr(gc, "get_freeze_count", lambda: number)  # noqa: B010  # not for type checkers


def thaw() -> None:
    """For tests of what is frozen: nothing is, and what is frozen from now on is counted."""
    gc.unfreeze()
    setattr(gc, "get_freeze_count", _count)  # noqa: B010  # not for type checkers
