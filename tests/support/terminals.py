"""Terminals for tests: a pty, and an emulator that says what a person would see."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pyte

from tests.support.forks import ForkedPython
from tests.support.waiting import PATIENCE, wait_until


def _own_the_terminal() -> None:
    """In a child: its standard output is its terminal, and it hears when that is closed, also under nohup."""
    fcntl.ioctl(1, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Terminal:
    """``out`` is what programs write to; ``screen`` is what has been seen of it so far."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.ours, theirs = pty.openpty()
        self.out: TextIO = os.fdopen(theirs, "w", encoding="utf-8")
        self.screen = pyte.Screen(columns, rows)
        self.written = b""
        self._stream = pyte.ByteStream(self.screen)
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        """As a person does with the mouse; the kernel sends SIGWINCH."""
        self.screen.resize(rows, columns)
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def start(self, command: Sequence[str], **variables: str) -> subprocess.Popen[bytes]:
        """A program whose controlling terminal this is."""
        theirs = self.out.fileno()
        process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", **variables},
            start_new_session=True,
            preexec_fn=_own_the_terminal,
        )
        self.out.close()
        return process

    def fork(self, command: Sequence[str], **variables: str) -> ForkedPython:
        """``python WORDS``, as ``start`` does it, in a fork of a process that has imported torch."""
        assert command[0] == sys.executable
        environment = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **variables}
        process = ForkedPython(command[1:], environment, Path.cwd(), log=Path(os.ttyname(self.out.fileno())))
        wait_until(lambda: process.poll() is not None or os.tcgetpgrp(self.ours) == process.pid)
        self.out.close()
        return process

    def look(self, seconds: float = 0.0) -> bool:
        """Takes in what comes next within so many seconds; False when nobody has the terminal open any more."""
        while select.select([self.ours], [], [], seconds)[0]:
            try:
                chunk = os.read(self.ours, 65536)
            except OSError:
                return False
            self.written += chunk
            self._stream.feed(chunk)
            seconds = 0.0
        return True

    def look_until(self, there: Callable[[list[str]], bool], seconds: float = PATIENCE) -> None:
        """Looks on until the screen is as it should be."""
        deadline = time.monotonic() + seconds
        while not there(self.shown()):
            open_still = self.look(0.1)
            assert open_still or there(self.shown()), self.shown()
            assert time.monotonic() < deadline, self.shown()

    def look_to_the_end(self, seconds: float = PATIENCE) -> None:
        """Looks until all programs that had it open are gone."""
        deadline = time.monotonic() + seconds
        while self.look(0.1):
            assert time.monotonic() < deadline, self.shown()

    def shown(self) -> list[str]:
        """The rows of the screen, without the blanks behind them."""
        return [line.rstrip() for line in self.screen.display]

    def fill(self) -> None:
        """Until it takes no more: the kernel still moves on what was just written, and then there is room again."""
        os.set_blocking(self.out.fileno(), False)
        for _ in range(5):
            with suppress(BlockingIOError):
                while True:
                    os.write(self.out.fileno(), b"x")
            time.sleep(0.05)
        os.set_blocking(self.out.fileno(), True)

    def close(self) -> None:
        os.close(self.ours)


def training(folder: Path, *sets: str, engine: str = "sequential") -> list[str]:
    """The command of a run of small blocks."""
    words = ("blocks=2", "model.width=4", "log.every_steps=5", f"engine={engine}", *sets)
    command = [sys.executable, "-m", "bllpipe.launch", "--run-dir", str(folder)]
    return [*command, *(word for key in words for word in ("--set", key))]
