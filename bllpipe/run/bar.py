"""How far a job of many parts is: a bar on a terminal; in logs a line now and then with done of how many, time so far,
and time left. For what takes long and is no run: planning, benchmarks."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_DRAWINGS = 0.5


class Bar:
    """The progress of ``name``, which has ``total`` parts if that is known yet; on standard error unless ``out`` says
    otherwise, so that results can be piped.

    A bar moves on by itself unless it is ``quiet``: then nothing is drawn but when it is told something, as whoever
    measures times needs it. Any thread may tell.
    """

    def __init__(self, name: str, total: int | None = None, out: TextIO | None = None, quiet: bool = False) -> None:
        from rich.console import Console  # not for --help

        self.name, self.done, self.total = name, 0, total
        self._out, self._lock = out or sys.stderr, threading.Lock()
        self._began = self._last = time.monotonic()
        console = Console(file=self._out)
        self._drawn = _drawn(console, quiet) if self._out.isatty() and not console.is_dumb_terminal else None

    def __enter__(self) -> Bar:
        if self._drawn is not None:
            self._drawn.add_task(self.name, total=self.total, what="")
            self._drawn.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._drawn is not None:
            self._drawn.stop()

    def advance(self, what: str = "") -> None:
        """One more part is done."""
        with self._lock:
            self._tell(what, self.done + 1, self.total)

    def at(self, what: str, done: int = 0, total: int | None = None) -> None:
        """``done`` parts of ``total`` are done."""
        with self._lock:
            self._tell(what, done, total)

    def _tell(self, what: str, done: int, total: int | None) -> None:
        self.done, self.total = done, total
        now, every = time.monotonic(), SECONDS_BETWEEN_DRAWINGS if self._drawn is not None else SECONDS_BETWEEN_LINES
        if self._drawn is not None:
            self._drawn.update(self._drawn.task_ids[0], completed=done, total=total, what=what)
        if now - self._last < every:
            return
        self._last = now
        if self._drawn is not None:
            self._drawn.refresh()
        else:
            self._print(self.line(what, now - self._began))

    def line(self, what: str, seconds: float) -> str:
        """``plan: 20 of 100, layer1.0; 0:00:10 so far, 0:00:40 left``."""
        of = f"{self.done} of {self.total}, " if self.total is not None else ""
        text = f"{self.name}: {of}{what}; {_clock(seconds)} so far"
        if not self.total or not self.done:
            return text
        return f"{text}, {_clock(seconds / self.done * max(0, self.total - self.done))} left"

    def _print(self, line: str) -> None:
        with suppress(OSError):  # a log on a full disk
            print(line, file=self._out, flush=True)


def _drawn(console: Console, quiet: bool) -> Progress:
    """What is printed meanwhile goes above the bar where both are on the terminal, and where it went if not."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Drawn

    return Drawn(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}", markup=False),
        console=console,
        auto_refresh=not quiet,
        refresh_per_second=1 / SECONDS_BETWEEN_DRAWINGS,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
