"""Terminal output: log messages, a progress bar for planning and benchmarks, text tables, sizes and ages.

An output that cannot be written, such as a log on a full disk, never stops a run.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_DRAWINGS = 0.5
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def say(text: str, out: TextIO | None = None) -> None:
    """Writes lines to ``out``, by default standard output, in one write, as ranks share it."""
    out = sys.stdout if out is None else out
    with suppress(OSError):
        out.write(f"{text}\n")
        out.flush()


def warn(text: str) -> None:
    """Writes a line to standard error."""
    say(f"bllpipe: {text}", sys.stderr)


class Bar:
    """The progress of ``name`` with ``total`` parts, if known; on standard error, so that results can be piped.

    A thread redraws the bar. With ``quiet`` it is drawn only by ``advance`` and ``at``, so that measurements are not
    disturbed. Both may be called from any thread.
    """

    def __init__(self, name: str, total: int | None = None, out: TextIO | None = None, quiet: bool = False) -> None:
        from rich.console import Console  # slow to import, so not at the top

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
            self._update(what, self.done + 1, self.total)

    def at(self, what: str, done: int = 0, total: int | None = None) -> None:
        """``done`` parts of ``total`` are done."""
        with self._lock:
            self._update(what, done, total)

    def _update(self, what: str, done: int, total: int | None) -> None:
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
            with suppress(OSError):  # a log on a full disk
                print(self.line(what, now - self._began), file=self._out, flush=True)

    def line(self, what: str, seconds: float) -> str:
        """``plan: 20 of 100, layer1.0; 0:00:10 so far, 0:00:40 left``."""
        of = f"{self.done} of {self.total}, " if self.total is not None else ""
        text = f"{self.name}: {of}{what}; {_clock(seconds)} so far"
        if not self.total or not self.done:
            return text
        return f"{text}, {_clock(seconds / self.done * max(0, self.total - self.done))} left"


def _drawn(console: Console, quiet: bool) -> Progress:
    """Standard output goes above the bar if both are on the terminal."""
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


def percent(fraction: float | None) -> str:
    """A fraction such as 98.50 %, and ``-`` if it is unknown."""
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def size_text(number: int) -> str:
    """Bytes in the unit that leaves few digits, such as 1.2 MB."""
    size, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def age_text(seconds: float) -> str:
    """An age in the largest unit that is not above it, such as 3 min."""
    length, unit = next((each for each in UNITS if seconds >= each[0]), UNITS[-1])
    return f"{seconds // length:.0f} {unit}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first is flush left, the others flush right."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (heads, *rows)
    )
