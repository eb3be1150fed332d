"""``log.to``: rank 0 starts a process for every tracker, which follows the files of the run and passes them on.

Nothing of a tracker runs in a process that trains. metrics.jsonl is the queue between the two: a tracker that is slow
lags behind, and one that blocks or dies leaves the run as it is. At the end of the run it has ``LAST_SECONDS`` for the
rest. What it has not taken by then is counted in a warning.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bllpipe.engines import Callback
from bllpipe.errors import ConfigError
from bllpipe.utils.console import warn
from bllpipe.utils.files import atomic_write, json_object

if TYPE_CHECKING:
    from bllpipe.engines.job import Job

FOLDER = "trackers"  # in the run directory
LAST_SECONDS = 30.0  # after the end of the run, for all trackers together
STOP_SECONDS = 10.0  # the same after a stop: a cluster may kill what has not ended soon after its signal
SPARE_SECONDS = 5.0  # of a tracker whose rank 0 is gone; while it lives, it ends the tracker
PROGRAM = "bllpipe.tools.monitoring.tracker_process"


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError for a tracker whose package is not installed. Only for the machine of rank 0."""
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder ./wandb, which W&B itself makes, can be imported too
            raise ConfigError(
                f"log.to names {name}, but the package {name} is not installed; use pip install 'bllpipe[{name}]', or "
                f"leave it out of log.to"
            )


class Tracking(Callback):
    """The trackers called ``names``, of the run that this process displays."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._trackers: list[TrackerProcess] = []

    def display(self, job: Job, store: Any) -> AbstractContextManager[object]:
        return self._following(job.directory.path, job.start)

    @contextmanager
    def _following(self, directory: Path, start: int) -> Iterator[None]:
        for name in self._names:
            try:
                self._trackers.append(TrackerProcess(name, directory, start))
            except OSError as error:
                warn(f"log.to {name}: it cannot be started ({error}); the run continues without it")
        try:
            yield
        except BaseException:
            self._end()
            raise

    def on_failure(self, run_directory: Path, error: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        """Closes the input of all trackers, which then read from status.json how the run has ended."""
        for tracker in self._trackers:
            tracker.end_of_run()

    def on_summary(self, run_directory: Path) -> None:
        self._end()
        seconds = STOP_SECONDS if _is_stopped(run_directory) else LAST_SECONDS
        deadline = time.monotonic() + seconds
        for tracker in self._trackers:
            tracker.finish(deadline, seconds)
        self._trackers.clear()


class TrackerProcess:
    """One tracker of the run in ``directory``, which begins or resumes after step ``start``. OSError if its files
    cannot be written.

    The process has a session of its own: a signal to the group of this process would end it too early. It ends by
    itself when its standard input closes, however this process ends.
    """

    def __init__(self, name: str, directory: Path, start: int) -> None:
        self._name, self._directory = name, directory
        (directory / FOLDER).mkdir(parents=True, exist_ok=True)
        self._log = directory / FOLDER / f"{name}.log"
        attempt = uuid.uuid4().hex
        atomic_write(attempt_file(directory, name), attempt + "\n")
        arguments = [name, str(directory.absolute()), str(start), str(LAST_SECONDS + SPARE_SECONDS), attempt]
        command = [sys.executable, "-m", PROGRAM, *arguments]
        with self._log.open("ab") as log:  # what a tracker prints would mix with the progress display
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        self._waiting = threading.Thread(target=self._watch, name=f"tracker {name}", daemon=True)
        self._stopped = False
        self._waiting.start()

    def end_of_run(self) -> None:
        """The run writes no more lines."""
        assert self._process.stdin is not None, "it is a pipe"
        with suppress(OSError):
            self._process.stdin.close()

    def finish(self, deadline: float, seconds: float) -> None:
        """Waits until the tracker has taken everything, or else, at the ``deadline``, which is ``seconds`` after the
        run, stops it; warns of what it has not taken."""
        self._waiting.join(max(0.0, deadline - time.monotonic()))
        if self._waiting.is_alive():
            self._stopped = True
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            warn(
                f"log.to {self._name}: it did not end within {seconds:g} s after the run and was stopped; "
                f"{undelivered(self._directory, self._name)}"
            )

    def _watch(self) -> None:
        code = self._process.wait()
        if code and not self._stopped:
            lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n") if self._log.is_file() else []
            reason = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
            how = f"signal {-code}" if code < 0 else reason[:300]
            warn(
                f"log.to {self._name}: the tracker has ended ({how}), and the run continues without it; "
                f"{undelivered(self._directory, self._name)}; see {self._log}"
            )


def _is_stopped(directory: Path) -> bool:
    try:
        return json_object((directory / "status.json").read_bytes()).get("status") == "preempted"
    except OSError:
        return False


def state_file(directory: Path, name: str) -> Path:
    """Where a tracker keeps the identity of its run and what it has taken."""
    return directory / FOLDER / f"{name}.json"


def attempt_file(directory: Path, name: str) -> Path:
    """Holds the name of the newest attempt at the run that a tracker follows."""
    return directory / FOLDER / f"{name}.attempt"


def read_state(directory: Path, name: str) -> dict[str, Any]:
    """The object in the state file; empty without one."""
    try:
        return json_object(state_file(directory, name).read_bytes())
    except OSError:
        return {}


def undelivered(directory: Path, name: str) -> str:
    """How many lines of metrics.jsonl a tracker has not taken, in words."""
    with suppress(OSError):
        total = (directory / "metrics.jsonl").read_bytes().count(b"\n")
        taken = int(read_state(directory, name).get("lines", 0))
        return f"it has not taken {max(0, total - taken)} of {total} lines of metrics.jsonl"
    return "there is no metrics.jsonl"
