"""No process outlives the one that started it, however that one ends. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


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
