"""Signals to our launcher: the first asks the ranks to stop at a step that they agree on, a second SIGINT ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from bllpipe.run.notices import warn

POLL_SECONDS = 0.05


class Stopping:
    """From entering to leaving it, signals are for the ranks: SIGTERM as soon as they are started, and SIGKILL if they
    are still there ``patience`` seconds later. ``signal`` is the first that came.

    ``ranks`` gives the ids of their processes, which lead groups of their own; there may be none yet.
    """

    def __init__(self, patience: float) -> None:
        self.signal: signal.Signals | None = None
        self.ranks: Callable[[], set[int]] = set
        self._patience, self._at_once, self._left = patience, False, threading.Event()
        self._before: dict[signal.Signals, Any] = {}
        self._thread = threading.Thread(target=self._pass_on, name="stopping", daemon=True)

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                    self._before[number] = signal.signal(number, self._note)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left.set()
        self._thread.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Takes no lock and prints nothing, as it may have interrupted whoever does."""
        if self.signal is None:
            self.signal = signal.Signals(number)
        elif number == signal.SIGINT:
            self._at_once = True

    def _pass_on(self) -> None:
        while self.signal is None:
            if self._left.wait(POLL_SECONDS):
                return
        warn(f"{self.signal.name}: the ranks stop; a second Ctrl-C ends them at once")  # the terminal may be gone
        deadline, told = time.monotonic() + self._patience, set[int]()
        while not self._left.wait(POLL_SECONDS):
            if self._at_once or time.monotonic() > deadline:
                _send(os.killpg, self.ranks(), signal.SIGKILL)
            else:
                ranks = self.ranks() - told
                _send(os.kill, ranks, signal.SIGTERM)  # a rank that still imports torch ends by it without a word
                told |= ranks


def _send(send: Callable[[int, int], None], processes: set[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            send(process, number)
