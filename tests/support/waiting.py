"""Waiting in tests: for an event, with a limit that a busy machine does not reach. No test asserts a duration.

The limit ends a test that would wait for ever; figures of time are for benchmarks/."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 240.0  # seconds


def wait_until(is_so: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Looks again and again until ``is_so()``; fails if it is not so after ``seconds``. Between two looks twice as long
    as a look takes, those at all processes are expensive."""
    end = time.monotonic() + seconds
    while began := time.monotonic():
        if is_so():
            return
        now = time.monotonic()
        assert now < end, f"not within {seconds:g} s"
        time.sleep(max(0.02, 2 * (now - began)))


@contextmanager
def default_action(number: signal.Signals) -> Iterator[None]:
    """Until the end of the block this process, and what it starts, has the default action for a signal. Under nohup the
    tests inherit SIGHUP as ignored."""
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)
