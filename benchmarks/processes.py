"""Concurrent subprocesses, each in its own process group, so that none outlives the process that started them."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

# A launcher stops its ranks with SIGTERM, and kills them after up to 30 seconds.
GRACE_SECONDS = 35.0


class Processes:
    """Those that run at the moment, by a key."""

    def __init__(self) -> None:
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: queue.Queue[str] = queue.Queue()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, key: str, command: Sequence[str], log: Path) -> None:
        """Starts ``command``; what it prints is added to ``log``."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._running[key] = process
        threading.Thread(target=self._watch, args=(key, process), daemon=True).start()

    def next_ended(self, timeout: float) -> tuple[str, int] | None:
        """Key and exit code of the next that ends; None when none does within ``timeout`` seconds."""
        try:
            key = self._ended.get(timeout=None if math.isinf(timeout) else max(timeout, 0.0))
        except queue.Empty:
            return None
        return key, self._end(key, 0.0)

    def stop(self) -> list[tuple[str, int]]:
        """Asks all that still run to end, and kills those that do not; their keys and exit codes."""
        for process in self._running.values():
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        return [(key, self._end(key, deadline - time.monotonic())) for key in list(self._running)]

    def _end(self, key: str, patience: float) -> int:
        """Waits for a process, then kills what is left of its group, whether it has ended itself or not."""
        process = self._running[key]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(patience, 0.0))
        _signal(process, signal.SIGKILL)
        code = process.wait()
        del self._running[key]
        return code

    def _watch(self, key: str, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._ended.put(key)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Sends the signal to the whole group; the group may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
