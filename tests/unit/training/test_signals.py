"""Signals come out of a thread, whatever the main one does, and leave everything as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from bllpipe.training import stopping
from bllpipe.training.stopping import STOPPING, StopSignals
from tests.support.waiting import PATIENCE, default_action

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


def test_who_repeats_a_signal_does_not_want_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "PATIENCE_SECONDS", 0.0)
    with StopSignals(), pytest.raises(KeyboardInterrupt):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)


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
