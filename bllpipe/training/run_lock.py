"""One run at a time in a directory: the rank that decides for all holds a lock on a file there while the run lasts.

It is ``flock`` on an open file, so the kernel gives it up with the process, however that ends, and a run that was
killed can go on at once. Processes that were forked meanwhile hold it too, until they have followed their rank.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from bllpipe.errors import ConfigError
from bllpipe.utils.console import warn

NAME = ".run.lock"
PATIENCE_SECONDS = 5.0  # for the processes of a run that was killed just now
POLL_SECONDS = 0.05
WITHOUT_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)


class RunLock:
    """Holds at most one run directory."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def take(self, directory: Path) -> None:
        """Returns when this process has the directory, which is made if it is not there; ConfigError when a live run
        has it. A directory that is not writable is not locked: the first write there reports why."""
        if self._descriptor is not None:
            return
        try:
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return
        try:
            _wait_for(descriptor, directory)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now().isoformat(" ", "seconds")}
        with suppress(OSError):  # a full disk: the lock holds without a name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)

    def release(self) -> None:
        """Leaves the directory to others; the file stays, as another process may be waiting for it already."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _wait_for(descriptor: int, directory: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{directory} is in use by a run that is alive: {_holder(descriptor)}; wait for it or stop it, or "
                    f"name another --run-dir"
                ) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            warn(f"{directory} cannot be locked ({error.strerror}): do not start a second run in it")
            return
        threading.Event().wait(POLL_SECONDS)


def _holder(descriptor: int) -> str:
    """``host a, process 12, since 2026-01-02 03:04:05``, as far as it is known."""
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
        return f"host {record['host']}, process {record['pid']}, since {record['since']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "it has not said which"
