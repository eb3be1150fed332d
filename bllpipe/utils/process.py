"""This process: it ends with the one that started it, and knows how much memory it uses."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

STATUS = Path("/proc/self/statm")
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
LARGEST_MMAP_THRESHOLD = 32 * 2**20
NEVER = 2**31 - 1
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def keep_freed_memory() -> None:
    """Every step asks for the same tensors: what it frees is kept for the next one, and not given back to the system,
    which would have to clear it page by page. Worth 3 to 4 % of a ResNet's step on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        libc.mallopt(TRIM_THRESHOLD, NEVER)


def freeze_garbage() -> None:
    """What has been built so far stays until the end: the collector need not look at it in any step. A script that has
    frozen its own objects keeps them: there is one place for frozen ones, and it is thawed as a whole."""
    gc.collect()
    if gc.get_freeze_count() == 0:
        gc.freeze()


def thaw_garbage() -> None:
    """The collector looks at everything again, behind the end of a run."""
    gc.unfreeze()


def resident_bytes() -> int | None:
    """Resident memory now; None where the system does not tell."""
    return int(STATUS.read_text().split()[1]) * resource.getpagesize() if STATUS.exists() else None


def peak_memory_bytes() -> int:
    """Most memory this process ever held: of its GPU if it has one, else resident memory."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gpu_bytes() -> int:
    """Memory of this process's tensors on its GPUs now; 0 without one. Asks the allocator, not the GPU."""
    import torch

    return _over_gpus(torch.cuda.memory_allocated)


def peak_gpu_bytes() -> int:
    """The most it ever was."""
    import torch

    return _over_gpus(torch.cuda.max_memory_allocated)


def _over_gpus(read: Callable[[int], int]) -> int:
    import torch

    return sum(read(index) for index in range(torch.cuda.device_count())) if torch.cuda.is_initialized() else 0


def end_with_parent(parent: int | None = None) -> None:
    """From now on the kernel kills this process when its parent dies; on Linux only.

    ``parent`` is its id, if that is known: it may be dead already, and this process have another. To the kernel the
    parent is the thread that started this process, so that must be one that stays.
    """
    if sys.platform != "linux":
        return
    expected = os.getppid() if parent is None else parent
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != expected:  # it died before the kernel knew
        os._exit(1)
