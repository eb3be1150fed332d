"""This process: its memory, malloc and garbage collection, Ctrl-Z, and its end when the parent process dies."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

STATM = Path("/proc/self/statm")
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
MAX_MMAP_THRESHOLD = 32 * 2**20
SMALL_MMAP_THRESHOLD = 2**20
NEVER_TRIM = 2**31 - 1
SLICE_SECONDS = 1.0  # of a longer wait
SET_PARENT_DEATH_SIGNAL, SET_NAME = 1, 15  # PR_SET_PDEATHSIG and PR_SET_NAME of prctl(2)


def keep_freed_memory() -> None:
    """Makes malloc keep freed memory: every step allocates tensors of the same sizes, and memory that returns to the
    system must be zeroed page by page when it is allocated again. Saves 3 to 4 % of a ResNet's step on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)
        libc.mallopt(TRIM_THRESHOLD, NEVER_TRIM)


def return_freed_memory() -> None:
    """Makes malloc return every freed block of at least 1 MiB to the system at once: for runs that must be small. What
    is gathered and freed again and again would leave gaps between activations that no other tensor fits."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, SMALL_MMAP_THRESHOLD)


def freeze_garbage() -> None:
    """Excludes all current objects from garbage collection, as they live until the end of the run. Does nothing if a
    script has frozen objects of its own: unfreezing at the end would include those."""
    gc.collect()
    if gc.get_freeze_count() == 0:
        gc.freeze()


def thaw_garbage() -> None:
    """Undoes ``freeze_garbage`` after a run."""
    gc.unfreeze()


def resident_bytes() -> int | None:
    """Current resident memory; None on systems without /proc."""
    return int(STATM.read_text().split()[1]) * resource.getpagesize() if STATM.exists() else None


def peak_memory_bytes() -> int:
    """Peak memory of this process: GPU memory if it has allocated any, else resident memory."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def gpu_bytes(peak: bool = False) -> int:
    """Memory of this process's tensors on all GPUs, now or at its peak; 0 without a GPU. Read from the allocator, not
    from the GPU."""
    import torch

    if not torch.cuda.is_initialized():
        return 0
    read = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
    return sum(read(index) for index in range(torch.cuda.device_count()))


def end_with_parent(parent: int | None = None) -> None:
    """Makes the kernel kill this process when its parent dies; on Linux only.

    ``parent`` is the parent's process id if known: the parent may have died already, and this process have a new one.
    For the kernel the parent is the thread that started this process, so that thread must live as long as its process.
    """
    if sys.platform != "linux":
        return
    expected = os.getppid() if parent is None else parent
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != expected:  # the parent died before prctl
        os._exit(1)


def name_process(name: str) -> None:
    """What ps, top and pgrep call this process, at most 15 characters; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_NAME, name.encode())


class Patience:
    """The rest of a timeout, for waits that look often: of a time in which this process was stopped, as by Ctrl-Z, at
    most ``SLICE_SECONDS`` count."""

    def __init__(self, seconds: float) -> None:
        self._left, self._looked = seconds, time.monotonic()

    def is_over(self) -> bool:
        """Whether nothing is left; called at least once per ``SLICE_SECONDS``."""
        now = time.monotonic()
        self._left -= min(now - self._looked, SLICE_SECONDS)
        self._looked = now
        return self._left < 0


def start_time(pid: int) -> int | None:
    """When the process was started, in ticks since the boot, so that another one with its number is told apart; None if
    it has ended, or on systems without /proc."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in ("Z", "X") else int(fields[19])


def is_in_background(terminal: int) -> bool:
    """Whether a shell at the terminal, an open descriptor, runs this process, or the one that started it, in the
    background, as after ``bg``. Ranks are in sessions of their own, without a terminal; their launcher has it. False on
    systems without /proc."""
    fields = _stat(os.getpid())
    while fields is not None:
        parent, group, device, foreground = (int(fields[place]) for place in (1, 2, 4, 5))
        if device:  # as the kernel packs it
            own = os.makedev(device >> 8 & 0xFFF, device & 0xFF | device >> 12 & 0xFFF00)
            return own == os.fstat(terminal).st_rdev and foreground not in (-1, group)
        fields = _stat(parent) if parent else None
    return False


def _stat(pid: int) -> list[str] | None:
    """What /proc says of a process, from its state on; None without such a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


@contextmanager
def around_suspension(before: Callable[[], None], after: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Meanwhile SIGTSTP calls ``before``, stops this process as it would without us, and calls ``after`` when it is
    continued. Only a main thread can do that, and only where nothing else handles the signal or ignores it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTSTP) != signal.SIG_DFL:
        yield
        return

    def suspend(number: int, frame: FrameType | None) -> None:
        before()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)  # returns when the process is continued, or at once if it cannot be stopped
        signal.signal(signal.SIGTSTP, suspend)
        after()

    signal.signal(signal.SIGTSTP, suspend)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
