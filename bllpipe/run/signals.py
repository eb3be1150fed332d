"""Signals that ask a run to stop, noticed by a thread that is not the main one.

Python runs signal handlers in the main thread, between two of its instructions; one that sits in a receive of C++ gets
there too late. But the byte that ``signal.set_wakeup_fd`` sends leaves at once.
"""

from __future__ import annotations

import select
import signal
import socket
import threading
import time
from types import TracebackType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PATIENCE_SECONDS = 3.0  # a signal within these of another is the same one, sent by the terminal and the launcher both


class StopSignals:
    """While it is entered, the first of STOPPING ends nothing but comes out of ``wait``. Who repeats it does not
    want to wait: that one is a KeyboardInterrupt.

    Only a main thread can receive signals; entered in another one it just waits.
    """

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._out.setblocking(False)
        self._in.setblocking(False)
        self._first: float | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._fd_before = -1

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as nohup has it
            heard = [number for number in STOPPING if not (number == signal.SIGHUP and ignored)]
            self._before = {number: signal.signal(number, self._handle) for number in heard}
            self._fd_before = signal.set_wakeup_fd(self._in.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before:
            signal.set_wakeup_fd(self._fd_before)
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._out.close()
        self._in.close()

    def wait(self, seconds: float) -> signal.Signals | None:
        """The next signal that asks to stop, or None when none came within ``seconds``."""
        try:
            ready, _, _ = select.select([self._out], [], [], seconds)
            numbers = self._out.recv(64) if ready else b""
        except (OSError, ValueError):  # left meanwhile
            return None
        return next((signal.Signals(number) for number in numbers if number in STOPPING), None)

    def _handle(self, number: int, frame: object) -> None:
        """In the main thread, when it comes to it. Without it the kernel's default would end the process."""
        now = time.monotonic()
        if self._first is not None and now - self._first > PATIENCE_SECONDS:
            raise KeyboardInterrupt
        self._first = self._first or now
