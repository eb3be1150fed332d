"""Terminal output: log messages, a progress bar for planning and benchmarks, text tables, sizes and ages.

Everything that bllpipe prints goes through this file, because a standard stream may be closed, None, a script's own
object without ``isatty``, ASCII only, full, or a pipe that is read no more. None of these stops a run, or changes its
exit code.
"""

from __future__ import annotations

import io
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

from bllpipe.errors import BllpipeError

if TYPE_CHECKING:
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_DRAWINGS = 0.5
BLOCKED_SECONDS = 2.0  # for a pipe that is not read, or a terminal after Ctrl-S: what is printed then is left out
PIPE_BUFFER = 4096  # bytes that a pipe takes in one piece once it is writable
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def print_line(text: str, out: TextIO | None = None) -> None:
    """Prints one line, or several, to ``out``, by default the standard output; in one write, as ranks share it."""
    put(f"{text}\n", sys.stdout if out is None else out)


def warn(text: str) -> None:
    """One line to the standard error."""
    put(f"bllpipe: {text}\n", sys.stderr)


def show(text: str, end: str = "\n") -> None:
    """The result of a command to the standard output. Raises BllpipeError when it is lost, so that half a result on a
    full disk has not the exit code of a whole one; BrokenPipeError when the reader, such as ``head``, is gone."""
    try:
        _write(f"{text}{end}", sys.stdout, patience=None)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BllpipeError(
            f"cannot write to the standard output: {reason}; make room, or send it somewhere else"
        ) from error


def put(text: str, out: TextIO | None) -> None:
    """Exactly ``text``, at once. An output that does not take it loses it; a script's own stream may raise anything."""
    with suppress(Exception):
        _write(text, out)


def _write(text: str, out: TextIO | None, patience: float | None = BLOCKED_SECONDS) -> None:
    if out is None:
        return
    if type(out) is io.TextIOWrapper and has_descriptor(out):
        out.flush()
        write_bytes(out.fileno(), encoded(text, out), patience)
        return
    try:
        out.write(text)
    except UnicodeEncodeError:
        out.write(encoded(text, out).decode(out.encoding or "ascii"))
    if hasattr(out, "flush"):
        out.flush()


def encoded(text: str, out: TextIO) -> bytes:
    """``text`` as ``out`` would write it; characters that its encoding lacks as escapes, such as \\xe9."""
    encoding, errors = getattr(out, "encoding", None) or "ascii", getattr(out, "errors", None) or "strict"
    try:
        return text.encode(encoding, errors)
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace")


def write_bytes(descriptor: int, content: bytes, patience: float | None = None) -> None:
    """Writes all of ``content``; TimeoutError when a pipe or a terminal takes nothing for ``patience`` seconds, and
    None waits without a limit."""
    can_block = not stat.S_ISREG(os.fstat(descriptor).st_mode)
    poll = select.poll()  # select.select refuses descriptors above 1023
    poll.register(descriptor, select.POLLOUT)
    left = memoryview(content)
    while left:
        if can_block and not poll.poll(None if patience is None else 1000 * patience):
            raise TimeoutError(f"nothing was taken for {patience} s")
        left = left[os.write(descriptor, left[:PIPE_BUFFER] if can_block else left) :]


def has_descriptor(out: TextIO) -> bool:
    """Whether ``out`` has a file descriptor, which a script's own object need not have."""
    try:
        return out.fileno() >= 0
    except (OSError, ValueError, AttributeError):
        return False


def is_terminal(out: TextIO | None) -> bool:
    """Whether ``out`` is a terminal; a script's own object need not have ``isatty``."""
    try:
        return out is not None and bool(out.isatty())
    except Exception:  # closed, or an object of the script's
        return False


def repair_standard_streams() -> None:
    """For a process of our own, before it opens any file: gives it the standard streams that it was started without,
    as ``>&-`` and some daemons do, and lets no character be refused.

    A closed descriptor would be the number of the next file or socket that is opened, and what C++ writes to the
    standard error would then go into metrics.jsonl, or to another rank.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(descriptor, True)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            stream = open(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        elif isinstance(out := getattr(sys, name), io.TextIOWrapper) and out.errors == "strict":
            out.reconfigure(errors="backslashreplace")


def drop_unwritten() -> None:
    """At the end of a process: what a closed terminal or a full disk did not take is dropped; the interpreter would
    turn it into an exit code of its own."""
    for out in (sys.stdout, sys.stderr):
        try:
            if out is not None:
                out.flush()
        except (OSError, ValueError, AttributeError):
            with suppress(Exception):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, out.fileno())
                os.close(null)


class Bar:
    """The progress of ``name`` with ``total`` parts, if known; on standard error, so that results can be piped.

    A thread redraws the bar. With ``quiet`` it is drawn only by ``advance`` and ``at``, so that measurements are not
    disturbed. Both may be called from any thread.
    """

    def __init__(self, name: str, total: int | None = None, out: TextIO | None = None, quiet: bool = False) -> None:
        self.name, self.done, self.total = name, 0, total
        self._out, self._lock = sys.stderr if out is None else out, threading.Lock()
        self._began = self._last = time.monotonic()
        self._drawn = _drawn(self._out, quiet) if is_terminal(self._out) else None

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
            put(f"{self.line(what, now - self._began)}\n", self._out)

    def line(self, what: str, seconds: float) -> str:
        """``plan: 20 of 100, layer1.0; 0:00:10 so far, 0:00:40 left``."""
        of = f"{self.done} of {self.total}, " if self.total is not None else ""
        text = f"{self.name}: {of}{what}; {_clock(seconds)} so far"
        if not self.total or not self.done:
            return text
        return f"{text}, {_clock(seconds / self.done * max(0, self.total - self.done))} left"


def _drawn(out: TextIO, quiet: bool) -> Progress | None:
    """None on a terminal that cannot move its cursor. What is printed meanwhile goes above the bar where both are on
    the terminal, and where it went if not."""
    from rich.console import Console  # not for --help
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Drawn

    console = Console(file=out)
    if console.is_dumb_terminal:
        return None
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
        redirect_stdout=is_terminal(sys.stdout),
    )


def _clock(seconds: float) -> str:
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
