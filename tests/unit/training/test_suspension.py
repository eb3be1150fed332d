"""Ctrl-Z: ranks, drawing and timeouts pause with the launcher, and go on with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch.distributed as dist

from bllpipe.distributed.process_group import PatientStore, agree_attempt
from bllpipe.utils.process import Patience, around_suspension
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
REPOSITORY = Path(__file__).parents[3]
LAUNCHER = """
import signal, subprocess
from bllpipe.engines.launcher import SignalForwarder, _ranks_suspended
rank = subprocess.Popen(["sleep", "600"], start_new_session=True)
forwarder = SignalForwarder(1.0)
forwarder.ranks = lambda: {rank.pid}
with _ranks_suspended(forwarder, lambda: print("given back", flush=True)):
    print(rank.pid, flush=True)
    input()
rank.kill()
"""
STOPPED_SECONDS = 9.0  # longer than the limit of the wait below
WAITS = """
import sys, threading
from bllpipe.distributed.local_links import Channel
channel = Channel(1)
def put():
    sys.stdin.readline()
    channel.put("came")
threading.Thread(target=put, daemon=True).start()
print("waits", flush=True)
print(channel.get(8.0), flush=True)
"""
AGREES = """
import sys, threading
from bllpipe.messages import Round
from bllpipe.training.stopping import StopAgreement
stop = StopAgreement(agreement_seconds=8.0)
def decide():
    sys.stdin.readline()
    stop.decide(1)
threading.Thread(target=decide, daemon=True).start()
stop.freeze("SIGTERM at rank 0")
print("waits", flush=True)
print(*(entry.phase for entry in stop.until_stop("block", [Round("train", 1)] * 2, saved=False)), flush=True)
"""
STORE_WAITS = """
import sys
from datetime import timedelta
import torch.distributed as dist
from bllpipe.distributed.process_group import PatientStore
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), timeout=timedelta(seconds=60), wait_for_workers=False)
print("waits", flush=True)
print(PatientStore(store, 8.0).get("key").decode(), flush=True)
"""
MEETS = """
import sys
from datetime import timedelta
import torch.distributed as dist
from bllpipe.distributed.process_group import agree_attempt
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), timeout=timedelta(seconds=60), wait_for_workers=False)
print("waits", flush=True)
print(agree_attempt(1, 2, store, 8.0), flush=True)
"""


def started(code: str, *words: str) -> subprocess.Popen[str]:
    """In a process group of its own, as a shell starts a job."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )


@contextmanager
def killed(process: subprocess.Popen[str]) -> Iterator[None]:
    """A failed test does not wait for a process that is stopped."""
    try:
        yield
    finally:
        process.kill()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_ranks_stop_and_go_on_with_their_launcher() -> None:
    with started(LAUNCHER) as launcher, killed(launcher):
        assert launcher.stdout is not None and launcher.stdin is not None
        rank = int(launcher.stdout.readline())
        for _ in range(2):
            launcher.send_signal(signal.SIGTSTP)
            assert launcher.stdout.readline() == "given back\n"
            wait_until(lambda: state(launcher.pid) == "T")
            wait_until(lambda: state(rank) == "T")  # it stops when it is scheduled
            launcher.send_signal(signal.SIGCONT)
            wait_until(lambda: state(rank) == "S")
        launcher.communicate("\n")
        assert launcher.returncode == 0


class Stopped(NamedTuple):
    """A process that has been stopped while it waits, and the store in which it does."""

    process: subprocess.Popen[str]
    store: dist.TCPStore

    def goes_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def stopped() -> Iterator[dict[str, Stopped]]:
    """One for each kind of wait, all stopped for longer than any of them waits."""
    with ExitStack() as stack:
        found = {}
        for waits in (WAITS, AGREES, STORE_WAITS, MEETS):
            store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            process = stack.enter_context(started(waits, str(store.port)))
            stack.enter_context(killed(process))
            assert process.stdout is not None
            assert process.stdout.readline() == "waits\n"
            threading.Event().wait(0.5)  # from the line that it prints to its wait
            process.send_signal(signal.SIGSTOP)
            found[waits] = Stopped(process, store)
        threading.Event().wait(STOPPED_SECONDS)
        yield found


@pytest.mark.parametrize(
    ("waits", "answer"), [(WAITS, "came\n"), (AGREES, "train save\n")], ids=["message", "agreement"]
)
def test_a_wait_does_not_count_what_the_process_was_stopped_for(
    stopped: dict[str, Stopped], waits: str, answer: str
) -> None:
    process, _ = stopped[waits]
    stopped[waits].goes_on()
    threading.Event().wait(0.5)  # what would expire does so now
    said, _ = process.communicate("\n")
    assert (said, process.returncode) == (answer, 0)


@pytest.mark.parametrize("waits", [STORE_WAITS, MEETS], ids=["key", "start"])
def test_a_wait_in_the_store_does_not_count_it_either(stopped: dict[str, Stopped], waits: str) -> None:
    """Torch's own timeouts go on while a process is stopped: after ``fg`` the run once failed."""
    process, store = stopped[waits]
    stopped[waits].goes_on()
    threading.Event().wait(0.5)  # what would expire does so now
    if waits == MEETS:
        assert agree_attempt(0, 2, store, PATIENCE) == 0  # type: ignore[arg-type]  # a Store by its methods
    store.set("key", "came")
    said, _ = process.communicate()
    assert (said, process.returncode) == ("0\n" if waits == MEETS else "came\n", 0)


def test_a_wait_in_the_store_ends() -> None:
    store = PatientStore(dist.HashStore(), 0.1)
    with pytest.raises(dist.DistStoreError, match="wait timeout after 0.1 s, key: key"):
        store.get("key")


def test_patience_is_over_when_its_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("bllpipe.utils.process.time.monotonic", lambda: now)
    patience = Patience(2.0)
    now = 100.0  # stopped
    assert not patience.is_over()
    now = 100.9
    assert not patience.is_over()
    now = 101.1
    assert patience.is_over()


def test_only_who_would_be_stopped_is() -> None:
    before = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        with around_suspension(lambda: pytest.fail("ignored signals stay ignored")):
            os.kill(os.getpid(), signal.SIGTSTP)
        assert signal.getsignal(signal.SIGTSTP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTSTP, before)


def test_the_handler_is_put_back() -> None:
    with around_suspension(lambda: None):
        assert callable(signal.getsignal(signal.SIGTSTP))
    assert signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL
