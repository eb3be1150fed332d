"""Ctrl-Z at a terminal: what has to be done before this process stops, and when ``fg`` or ``bg`` continues it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def around_suspension(before: Callable[[], None], after: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Meanwhile SIGTSTP calls ``before``, stops this process as it would without us, and calls ``after`` when it goes
    on. Only a main thread can do that, and only where nothing else handles the signal or ignores it."""
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
