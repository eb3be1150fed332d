"""One run at a time in a directory, and none that a dead one keeps."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
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
lock = RunLock()
lock.take(Path(sys.argv[1]))
if len(sys.argv) > 2 and os.fork() == 0:
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
