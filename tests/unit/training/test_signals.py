"""Signals come out of a thread, whatever the main one does, and leave everything as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import count
from math import inf
from typing import Any

import pytest
import torch.distributed as dist

from bllpipe.training import stopping
from bllpipe.training.stopping import LOOKS_OF_ONE_SIGNAL, STOPPING, GracefulStop, StopAgreement, StopSignals
from bllpipe.training.watchdog import Watchdog
from tests.support.waiting import PATIENCE, default_action, wait_until

# The main thread sits in C and does not come back to Python; the other one hears the signal all the same.
DEAF = """
import ctypes, os, threading
from bllpipe.training.stopping import StopSignals
def hear():
    print(heard.wait(120).name, flush=True)
    os._exit(0)
heard = StopSignals().__enter__()
threading.Thread(target=hear).start()
print("ready", flush=True)
lock = ctypes.create_string_buffer(64)
libc = ctypes.CDLL(None)
libc.pthread_mutex_lock(lock)
libc.pthread_mutex_lock(lock)
"""


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_heard_and_ends_nothing(number: signal.Signals) -> None:
    with default_action(number), StopSignals() as heard:
        assert heard.wait(0.01) is None
        os.kill(os.getpid(), number)
        assert heard.wait(PATIENCE) == number
        assert heard.wait(0.01) is None


@pytest.mark.parametrize("number", STOPPING)
def test_handlers_are_put_back(number: signal.Signals) -> None:
    with default_action(number):
        with StopSignals():
            assert signal.getsignal(number) != signal.SIG_DFL
        assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def never(*about: object) -> None:
    raise AssertionError(about)


def watched_process() -> Watchdog:
    """The watchdog of a process that trains alone."""
    store: Any = dist.HashStore()
    return Watchdog(store, 0, ["the only process"], StopAgreement(), inf, fail=never, leave=None)


@pytest.mark.parametrize("number", STOPPING)
def test_who_repeats_a_signal_does_not_want_to_wait(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "LOOKS_OF_ONE_SIGNAL", 1)
    with default_action(number), watched_process() as watchdog, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
        wait_until(lambda: watchdog.stop.exit_code)
        assert watchdog.stop.exit_code == 128 + number
        while True:
            os.kill(os.getpid(), number)
            time.sleep(0.01)


def test_the_same_signal_twice_stops_once_however_late_a_thread_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Terminal and launcher both send it. A main thread that waits in C hears the second one late: it was taken for the
    wish to end at once, without a checkpoint. No clock is looked at now."""
    for clock in ("monotonic", "perf_counter", "time"):
        monkeypatch.setattr(f"time.{clock}", partial(next, count(step=10.0)))
    with StopSignals() as heard:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert heard.wait(PATIENCE) == signal.SIGINT


def test_a_signal_after_many_looks_of_the_watchdog_is_a_second_one() -> None:
    left: list[int] = []
    store: Any = dist.HashStore()
    stop = GracefulStop(store, 0, 1, StopAgreement(), leave=left.append)
    stop.on_signal(signal.SIGHUP, look=7)
    stop.on_signal(signal.SIGTERM, look=7)
    stop.on_signal(signal.SIGTERM, look=7 + LOOKS_OF_ONE_SIGNAL - 1)
    assert left == [] and stop.exit_code == 128 + signal.SIGHUP
    stop.on_signal(signal.SIGTERM, look=7 + LOOKS_OF_ONE_SIGNAL)
    assert left == [128 + signal.SIGTERM]


def test_a_signal_after_a_failure_ends_the_process_at_once() -> None:
    left: list[int] = []
    store: Any = dist.HashStore()
    store.set("failure", "of another rank")
    GracefulStop(store, 0, 1, StopAgreement(), leave=left.append).on_signal(signal.SIGTERM, look=0)
    assert left == [128 + signal.SIGTERM]


def test_another_thread_just_waits() -> None:
    found = []

    def wait() -> None:
        with StopSignals() as heard:
            found.append(heard.wait(0.01))

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(PATIENCE)
    assert found == [None]


def test_a_main_thread_that_sits_in_c_is_no_hindrance() -> None:
    process = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=PATIENCE)
    assert out == "SIGTERM\n"
