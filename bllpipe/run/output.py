"""Writing the files of a run where that may fail: whole or not at all, and with one message that helps."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from bllpipe.errors import OutputError

Policy = Literal["fail", "go_on"]


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Turns whatever the system has against writing ``what`` to ``path`` into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(refusal(what, path, error)) from error


def refusal(what: str, path: Path, error: Exception) -> str:
    """What could not be written, where, why, and how much room there is."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot write {what} to {path}: {reason}; {_room(path)}"


def write_whole(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never a part; what could not be finished is removed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def append_line(path: Path, line: str) -> None:
    """One line in one write, as several ranks share the file; of a line that does not fit nothing stays."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        _write_all(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


class Leniency:
    """Lets a run go on without what cannot be written, if its ``policy`` says so: tells ``warn`` when that begins, and
    when it ends how much is missing."""

    def __init__(self, policy: Policy, what: str, key: str, warn: Callable[[str], None]) -> None:
        self._policy, self._what, self._key, self._warn = policy, what, key, warn
        self._missing, self._lock = 0, threading.Lock()

    def attempt(self, write: Callable[[], None]) -> None:
        """Carries out ``write``; its OutputError is raised or, under ``go_on``, told once."""
        try:
            write()
        except OutputError as error:
            if self._policy == "fail":
                raise
            self._note_failure(error)
        else:
            self._note_success()

    def _note_failure(self, error: OutputError) -> None:
        with self._lock:
            self._missing += 1
            if self._missing == 1:
                self._warn(f"{error.found}; the run goes on without ({self._key}: go_on)")

    def _note_success(self) -> None:
        with self._lock:
            if self._missing:
                self._warn(f"{self._what} can be written again; {self._missing} could not")
            self._missing = 0


def _write_all(descriptor: int, content: bytes) -> None:
    left = content
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except OSError:
        if written := len(content) - len(left):
            with suppress(OSError):  # half a line would spoil the next one
                os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR) - written)
        raise


def _room(path: Path) -> str:
    """How much is free where ``path`` is, or would be."""
    for place in (path, *path.parents):
        with suppress(OSError):
            return f"{shutil.disk_usage(place).free:,} bytes are free there"
    return "how much is free there is not known"
