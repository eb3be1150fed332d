"""What takes longer than a short run and is of use to none is left out of all tests, and of all their forks."""

from __future__ import annotations

import gc
import os
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import torch

MEMORY, ROOM = Path("/dev/shm"), 4 << 30  # a file system in memory, and how many bytes the tests may need of it
NO_PROGRAMS = getattr(os, "ST_NOEXEC", 0)  # Linux alone has it, as it has MEMORY

_count = gc.get_freeze_count


def root_in_memory(memory: Path = MEMORY, room: int = ROOM) -> str | None:
    """Where tests write their files: into memory. A disk that deletes much, or that others write to, holds up every
    checkpoint of every run, for half a minute at times. None where there is no such file system with that much room,
    in which programs may be started."""
    try:
        found = os.statvfs(memory)
    except OSError:
        return None
    usable = os.access(memory, os.W_OK | os.X_OK) and not found.f_flag & NO_PROGRAMS
    return str(memory) if usable and found.f_bavail * found.f_frsize >= room else None


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
