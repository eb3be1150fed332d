"""One run at a time in a directory, and none that a dead one keeps."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bllpipe.errors import ConfigError
from bllpipe.utils import files
from bllpipe.utils.files import RunLock

REPOSITORY = Path(__file__).parents[3]
HOLDS = """
import os, signal, sys
from pathlib import Path
from bllpipe.utils.files import RunLock
lock = RunLock(int(sys.argv[3]), restarts=True) if len(sys.argv) > 3 else RunLock()
lock.take(Path(sys.argv[1]))
if "forks" in sys.argv and os.fork() == 0:
    signal.pause()
print("held", flush=True)
signal.pause()
"""


def holder(directory: Path, *words: str) -> subprocess.Popen[str]:
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(directory), *words],
        env=variables,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_live_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_PATIENCE_SECONDS", 0.0)
    with holder(tmp_path / "run") as other:
        found = f"run is in use by a run that is alive: host {socket.gethostname()}, process {other.pid}, since 2"
        with pytest.raises(ConfigError, match=f"{found}.*; wait for it or stop it, or name another --run-dir"):
            RunLock().take(tmp_path / "run")
        other.kill()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_run_keeps_nothing(tmp_path: Path, how: signal.Signals) -> None:
    with holder(tmp_path) as other:
        other.send_signal(how)
        other.wait()
    lock = RunLock()
    lock.take(tmp_path)
    lock.release()


def test_a_stopped_run_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_PATIENCE_SECONDS", 0.0)
    with holder(tmp_path) as other:
        other.send_signal(signal.SIGSTOP)
        with pytest.raises(ConfigError, match="is in use by a run that is alive"):
            RunLock().take(tmp_path)
        other.kill()


def test_processes_that_read_images_are_waited_for(tmp_path: Path) -> None:
    with holder(tmp_path, "forks") as other:
        other.kill()
        other.wait()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ConfigError, match="is in use"):
            patch.setattr(files, "LOCK_PATIENCE_SECONDS", 0.0)
            RunLock().take(tmp_path)
        os.killpg(other.pid, signal.SIGKILL)
    RunLock().take(tmp_path)


def test_one_process_may_go_on_with_its_own_run(tmp_path: Path) -> None:
    first, second = RunLock(), RunLock()
    first.take(tmp_path)
    first.take(tmp_path)
    first.release()
    first.release()
    second.take(tmp_path)
    assert (tmp_path / files.LOCK_NAME).is_file()


def test_what_stands_in_the_file_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_PATIENCE_SECONDS", 0.0)
    first = RunLock()
    first.take(tmp_path)
    (tmp_path / files.LOCK_NAME).write_text("[1, 2")
    with pytest.raises(ConfigError, match="alive: its process is unknown"):
        RunLock().take(tmp_path)
    first.release()


def test_a_directory_that_cannot_be_made_is_left_to_those_who_write_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    RunLock().take(tmp_path / "file" / "run")


@pytest.fixture
def launcher() -> Iterator[subprocess.Popen[bytes]]:
    """A process that would start ranks again."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def kill_rank(directory: Path, launcher: subprocess.Popen[bytes]) -> int:
    with holder(directory, "rank", str(launcher.pid)) as rank:
        rank.kill()
        return rank.pid


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
class TestRestarts:
    """Between two attempts no process holds the kernel's lock; a second run once got the directory then."""

    def test_a_second_run_is_refused_between_two_attempts(
        self, tmp_path: Path, launcher: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rank = kill_rank(tmp_path, launcher)
        monkeypatch.setattr(files, "LOCK_PATIENCE_SECONDS", 0.0)
        words = (
            f"alive: host .*, process {rank}, since 2.*, which process {launcher.pid} starts again after a failure; w"
        )
        for second in (RunLock(), RunLock(os.getpid(), restarts=True)):
            with pytest.raises(ConfigError, match=words):
                second.take(tmp_path)

    def test_the_next_attempt_gets_it_while_others_try(
        self, tmp_path: Path, launcher: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kill_rank(tmp_path, launcher)
        refused: list[ConfigError] = []

        def try_second() -> None:
            with pytest.raises(ConfigError, match="is in use by a run that is alive") as caught:
                RunLock().take(tmp_path)
            refused.append(caught.value)

        monkeypatch.setattr(files, "LOCK_POLL_SECONDS", 0.001)
        monkeypatch.setattr(files, "LOCK_PATIENCE_SECONDS", 2.0)
        others = [threading.Thread(target=try_second) for _ in range(3)]
        for other in others:
            other.start()
        RunLock(launcher.pid).take(tmp_path)  # the last attempt: its agent has no restart left
        for other in others:
            other.join()
        assert len(refused) == 3

    def test_a_launcher_that_has_ended_keeps_nothing(self, tmp_path: Path, launcher: subprocess.Popen[bytes]) -> None:
        kill_rank(tmp_path, launcher)
        launcher.kill()  # a zombie until the end of the test: it starts nothing again
        RunLock().take(tmp_path)

    def test_another_process_with_its_number_is_not_it(self, tmp_path: Path, launcher: subprocess.Popen[bytes]) -> None:
        kill_rank(tmp_path, launcher)
        record = json.loads((tmp_path / files.LOCK_NAME).read_text())
        (tmp_path / files.LOCK_NAME).write_text(json.dumps({**record, "started": 1}))
        RunLock().take(tmp_path)

    def test_processes_of_another_machine_are_not_looked_for_here(
        self, tmp_path: Path, launcher: subprocess.Popen[bytes]
    ) -> None:
        kill_rank(tmp_path, launcher)
        record = json.loads((tmp_path / files.LOCK_NAME).read_text())
        (tmp_path / files.LOCK_NAME).write_text(json.dumps({**record, "host": "another"}))
        RunLock().take(tmp_path)

    def test_another_agent_of_the_same_job_gets_it(
        self, tmp_path: Path, launcher: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a restart torchrun may have given rank 0 to another of its agents on this machine."""
        kill_rank(tmp_path, launcher)
        record = json.loads((tmp_path / files.LOCK_NAME).read_text())
        (tmp_path / files.LOCK_NAME).write_text(json.dumps({**record, "job": "a"}))
        monkeypatch.setattr(files, "LOCK_PATIENCE_SECONDS", 0.0)
        for job in ("b", None):
            with pytest.raises(ConfigError, match="is in use by a run that is alive"):
                RunLock(os.getpid(), restarts=True, job=job).take(tmp_path)
        RunLock(os.getpid(), restarts=True, job="a").take(tmp_path)

    def test_a_run_that_has_ended_leaves_it(self, tmp_path: Path, launcher: subprocess.Popen[bytes]) -> None:
        first = RunLock(launcher.pid, restarts=True)
        first.take(tmp_path)
        first.release()
        RunLock().take(tmp_path)
