"""The process that does the GPU benchmark's tasks: it stays while they go well, and is replaced when one does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.gpu_worker import Worker

LONG = 600.0


def start_and_wait(path: Path) -> None:
    """Starts a process of its own, notes its id, and does not come back."""
    started = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({LONG})"])
    path.write_text(str(started.pid))
    started.wait()


def test_tasks_that_go_well_share_a_process() -> None:
    with Worker() as worker:
        first, second = worker.ask(os.getpid, limit=LONG), worker.ask(os.getpid, limit=LONG)
        assert first.value == second.value != os.getpid()
        assert first.error is None and first.seconds > 0
    assert not psutil.pid_exists(first.value)


@pytest.mark.parametrize(
    ("task", "arguments", "limit", "error"),
    [
        (int, ("seven",), LONG, "ValueError: invalid literal for int() with base 10: 'seven'"),
        (sys.exit, ("a way out",), LONG, "SystemExit: a way out"),
        (os._exit, (3,), LONG, "its process ended with exit code 3"),
        (os.abort, (), LONG, "its process ended with exit code -6"),
        (time.sleep, (LONG,), 0.5, "stopped after "),
    ],
    ids=["error", "exit", "ended", "aborted", "too long"],
)
def test_a_task_that_fails_is_reported_and_the_next_has_a_new_process(
    task: object, arguments: tuple[object, ...], limit: float, error: str
) -> None:
    with Worker() as worker:
        before = worker.ask(os.getpid, limit=LONG).value
        found = worker.ask(task, *arguments, limit=limit)  # type: ignore[arg-type]  # all of them can be called
        assert found.error is not None and found.error.startswith(error) and found.value is None
        after = worker.ask(os.getpid, limit=LONG)
        assert after.error is None and after.value != before
    assert not psutil.pid_exists(before)


def test_an_error_comes_with_its_traceback() -> None:
    with Worker() as worker:
        assert "ValueError" in worker.ask(int, "seven", limit=LONG).details


def test_what_a_task_has_started_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with Worker() as worker:
        worker.begin(start_and_wait, path)
        end = time.monotonic() + 60
        while not path.exists() or not path.read_text():
            assert time.monotonic() < end, "no process was started"
            time.sleep(0.05)
        started = psutil.Process(int(path.read_text()))
        assert worker.answer(0.0).error is not None
    psutil.wait_procs([started], timeout=60)
    assert not started.is_running()
