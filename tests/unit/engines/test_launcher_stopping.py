"""Signals to the launcher reach its children, and those that do not end by them are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bllpipe.engines.launcher import SignalForwarder
from tests.support.waiting import PATIENCE, default_action

WILLING = "import time; print('on', flush=True); time.sleep(3600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WILLING


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, as ranks are, that has begun."""
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "on\n"
        yield program
    finally:
        program.kill()
        program.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_is_passed_on(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    with default_action(number), child(WILLING) as rank, SignalForwarder(patience=PATIENCE) as stopping:
        os.kill(os.getpid(), number)
        stopping.ranks = lambda: {rank.pid}  # which is started only after the signal has come
        assert rank.wait(PATIENCE) == -signal.SIGTERM
        assert stopping.signal == number
    assert capsys.readouterr().err.startswith(f"bllpipe: {number.name}: the ranks stop")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_handlers_are_put_back(number: signal.Signals) -> None:
    with default_action(number):
        with SignalForwarder(patience=PATIENCE):
            assert signal.getsignal(number) != signal.SIG_DFL
        assert signal.getsignal(number) == signal.SIG_DFL


def test_without_a_signal_nothing_happens(capsys: pytest.CaptureFixture[str]) -> None:
    with child(WILLING) as rank:
        with SignalForwarder(patience=0) as stopping:
            stopping.ranks = lambda: {rank.pid}
            with pytest.raises(subprocess.TimeoutExpired):
                rank.wait(0.3)
        assert stopping.signal is None
    assert capsys.readouterr().err == ""


def test_who_does_not_stop_in_time_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    with child(STUBBORN) as rank, SignalForwarder(patience=0.3) as stopping:
        stopping.ranks = lambda: {rank.pid}
        os.kill(os.getpid(), signal.SIGTERM)
        assert rank.wait(PATIENCE) == -signal.SIGKILL
    told = "ranks that still run 0.3 s after SIGTERM are killed, and what they have not saved is lost; --stop-seconds"
    assert capsys.readouterr().err.count(told) == 1


def test_time_in_which_the_launcher_was_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Ctrl-Z while the ranks write their last checkpoint, and ``fg`` a day later."""
    day = threading.Event()
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 86400 * day.is_set())
    with child(STUBBORN) as rank, SignalForwarder(patience=PATIENCE) as stopping:
        stopping.ranks = lambda: {rank.pid}
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        day.set()
        with pytest.raises(subprocess.TimeoutExpired):
            rank.wait(0.5)


@pytest.mark.parametrize(("second", "ends"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_second_interrupt_ends_all_at_once(second: signal.Signals, ends: bool) -> None:
    with child(STUBBORN) as rank, SignalForwarder(patience=PATIENCE) as stopping:
        stopping.ranks = lambda: {rank.pid}
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), second)
        if ends:
            assert rank.wait(PATIENCE) == -signal.SIGKILL
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                rank.wait(0.3)
        assert stopping.signal == signal.SIGTERM


def test_a_hangup_that_is_ignored_stays_so() -> None:
    """``nohup python -m bllpipe.launch`` outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalForwarder(patience=1) as stopping:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stopping.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)
