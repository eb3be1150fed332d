"""The process of one tracker.

``python -m bllpipe.tools.monitoring.tracker_process NAME RUN_DIRECTORY START SECONDS ATTEMPT`` follows metrics.jsonl
until its standard input closes, which is when the run or rank 0 has ended, and then reads from status.json how the run
ended. What the tracker has taken is written to its state file, so that a resumed run continues the same run of the
tracker, and no line goes there twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bllpipe.config.loader import flat, stored_mapping
from bllpipe.tools.monitoring.trackers import TRACKERS, TrackedRun, Tracker
from bllpipe.tools.monitoring.tracking import attempt_file, read_state, state_file
from bllpipe.utils.console import warn
from bllpipe.utils.files import atomic_write, json_object
from bllpipe.utils.process import name_process

EVERY_SECONDS = 1.0
RETRY_SECONDS = (1.0, 10.0, 60.0)  # after which lines that the tracker has refused are passed to it again
STATUS_SECONDS = 5.0  # after the death of rank 0, for the process that writes why
MAX_LINES = 200  # passed to the tracker at once
MAX_BYTES = 1 << 20  # read at once
NICE = 10  # ranks that train come first


class Lines:
    """The lines of a growing file. At most ``MAX_BYTES`` are in memory, however much there is."""

    def __init__(self, path: Path) -> None:
        self._path, self._read, self._rest = path, 0, b""

    def read(self) -> list[bytes]:
        """The next complete lines; empty at the end of the file."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                new = file.read(MAX_BYTES)
        except OSError:
            return []
        self._read += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        return lines


class Delivery:
    """Passes the new lines of a run to its tracker, and keeps account of it in the state file."""

    def __init__(self, name: str, directory: Path, start: int, ended: threading.Event, attempt: str) -> None:
        self._name, self._directory, self._ended, self._attempt = name, directory, ended, attempt
        known = read_state(directory, name)
        self._lines = Lines(directory / "metrics.jsonl")
        self._taken = 0
        self._steps = {str(key): int(step) for key, step in known.get("steps", {}).items()}
        run = TrackedRun(
            directory.name,
            directory,
            start,
            flat(stored_mapping(str(directory / "config.yaml"))),
            self._record("env.json"),
            known.get("run"),
        )
        self.tracker: Tracker = TRACKERS[name](run)
        if self.tracker.shows_again:  # it has forgotten the steps that the run does again
            self._steps = {key: min(step, start) for key, step in self._steps.items()}
        self._write_state()

    def catch_up(self) -> None:
        """Passes on all lines that there are."""
        while lines := self._lines.read():
            for first in range(0, len(lines), MAX_LINES):
                batch = lines[first : first + MAX_LINES]
                self._pass(list(self._new(map(json_object, batch))))
                self._taken += len(batch)
                self._write_state()

    def conclude(self) -> None:
        """Passes on how the run has ended."""
        pause, deadline = threading.Event(), time.monotonic() + STATUS_SECONDS
        while (status := self._record("status.json").get("status")) == "running" and time.monotonic() < deadline:
            pause.wait(0.1)
        if self._is_overtaken():
            status = "running"  # what status.json says is the status of a later attempt
        self.tracker.finish(str(status), self._record("summary.json") if status in ("completed", "preempted") else {})

    def _is_overtaken(self) -> bool:
        try:
            return attempt_file(self._directory, self._name).read_text().strip() != self._attempt
        except OSError:  # the run directory is gone
            return False

    def _new(self, records: Iterator[dict[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The records that the tracker does not have from an earlier process of this run."""
        for record in records:
            key, step = f"{record.get('phase')} {record.get('rank')} {record.get('actor')}", record.get("step")
            if isinstance(step, int) and step > self._steps.get(key, -1):
                self._steps[key] = step
                yield record

    def _pass(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Passes ``records`` on, again and again while the tracker refuses them: its server may be away for a while."""
        for seconds in RETRY_SECONDS:
            try:
                return self.tracker.log(records)
            except Exception:
                warn(f"refused by the tracker, tried again in {seconds:g} s:\n{traceback.format_exc()}")
            self._ended.wait(seconds)
        self.tracker.log(records)

    def _record(self, name: str) -> dict[str, Any]:
        try:
            return json_object((self._directory / name).read_bytes())
        except OSError:
            return {}

    def _write_state(self) -> None:
        state = {"run": self.tracker.identity, "lines": self._taken, "steps": self._steps}
        with suppress(OSError):  # a full disk: then a resumed run is another run of the tracker
            atomic_write(state_file(self._directory, self._name), json.dumps(state) + "\n")


def end_of_input(seconds: float) -> threading.Event:
    """Is set when the standard input closes. ``seconds`` later the kernel ends this process, even if its tracker never
    returns."""
    ended = threading.Event()

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)  # sys.stdin.read would hold a lock that the end of the interpreter needs
        signal.setitimer(signal.ITIMER_REAL, seconds)
        ended.set()

    threading.Thread(target=wait, name="end of input", daemon=True).start()
    return ended


def main(arguments: Sequence[str]) -> int:
    """Follows the run; the exit code is 1 if the tracker has failed, which the last line of the output explains."""
    name, directory, start, seconds, attempt = arguments
    name_process(f"bllpipe {name}")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # rank 0 decides when the run ends
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    ended = end_of_input(float(seconds))
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(sys.stdout.fileno(), fcntl.LOCK_EX)  # the tracker of an earlier attempt may still be at work
        delivery = Delivery(name, Path(directory), int(start), ended, attempt)
        while not ended.wait(EVERY_SECONDS):
            delivery.catch_up()
        delivery.catch_up()
        delivery.conclude()
    except BaseException as error:  # a library may exit
        warn(f"{traceback.format_exc()}\n{type(error).__name__}: {' '.join(str(error).split())}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
