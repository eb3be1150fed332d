"""A followed run as a table, a row a rank: how busy each is, and which rank it waits for. The table keeps the lower
rows of the terminal, while whatever any process prints scrolls by above.

The rows are kept by a scrolling region (DECSTBM), as package managers keep their progress bar: lines of other ranks
need not know of the table, and are not garbled by it. A drawing is one write, which leaves the cursor where it was:

  | lines of any rank         |  scrolls, row 1 to height - kept
  | _                         |  the cursor: everything below it is the table's, also where a resize has moved it
  | run  running  bll/ranks   |  the rows kept
  |    role     step  img/s   |
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from textwrap import wrap
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TextIO

from bllpipe.tools.monitoring.run_status import Follower, Row
from bllpipe.utils.console import encoded, has_descriptor, is_terminal, write_bytes

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

BAR, WIDE_BAR = 8, 16  # characters
STEADY = {"step": 5, "waits for": 21}  # widths that do not change from look to look
WIDE = 100  # columns from which on everything fits
QUIET_SECONDS = 30.0  # after which it is said that nothing was heard
SUSPENDED_SECONDS = 3.0  # without a drawing
LEAST_ABOVE = 3  # rows that stay free for other lines
SAVE, RESTORE, ERASE_BELOW = "\x1b7", "\x1b8", "\x1b[J"
ALL_ROWS = f"{SAVE}\x1b[r{RESTORE}{ERASE_BELOW}"  # scroll again, and nothing is left of the view


def lines(run: Follower, width: int, colours: bool = False, unicode: bool = True) -> list[str]:
    """The view as lines of at most ``width`` columns; with ``colours``, they hold ANSI sequences."""
    from rich.console import Console
    from rich.text import Text

    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=colours,
        color_system="standard" if colours else None,
        legacy_windows=False,
    )
    console.print(Text(header(run, width), style="bold"), no_wrap=True, overflow="crop")
    if run.rows:
        console.print(_table(run, width, unicode))
    for line in wrap(_ended(run), width):
        console.print(Text(line), no_wrap=True, overflow="crop")
    text = out.getvalue()
    return (text if unicode else text.encode("ascii", "replace").decode()).splitlines()


def header(run: Follower, width: int) -> str:
    """Run, state, method, engine, epoch, steps and time left in one line; a long name of a run gives way."""
    total = "?" if run.last_step is None else run.last_step
    parts = [
        str(run.status.get("status", "starting")),
        f"{run.config.method}/{run.config.engine}",
        f"epoch {run.epoch + 1}" + ("" if run.config.steps else f"/{run.config.epochs}"),
        f"step {run.step}/{total}",
    ]
    if run.seconds_left is not None:
        parts.append(f"{clock(run.seconds_left)} left")
    if run.status.get("status") == "running" and (silent := time.time() - run.written) > QUIET_SECONDS:
        parts.append(f"silent for {clock(silent)}")
    facts, name = "  ".join(parts), run.directory.name
    room = max(8, width - len(facts) - 2)
    return f"{name if len(name) <= room else f'{name[: room - 3]}...'}  {facts}"


def _ended(run: Follower) -> str:
    """Why it ended, if that is known: the first line of the reason."""
    reason = str(run.status.get("reason") or "").strip()
    return f"{run.status.get('status')}: {reason.splitlines()[0]}" if reason else ""


def clock(seconds: float) -> str:
    """``1:02`` or ``1:00:02``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def bar(share: float, length: int = BAR, unicode: bool = True) -> str:
    """``share`` of a bar filled: ``######----``."""
    full, empty = ("█", "░") if unicode else ("#", "-")
    filled = round(share * length)
    return full * filled + empty * (length - filled)


def _table(run: Follower, width: int, unicode: bool) -> Table:
    from rich.table import Table

    wide = width >= WIDE
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in ("", "role", "step", "img/s", "busy", "waits for", "loss", *(["acc %"] if wide else []), "test %"):
        left = name in ("role", "busy", "waits for")
        justify: Literal["left", "right"] = "left" if left else "right"
        table.add_column(name, justify=justify, min_width=STEADY.get(name), no_wrap=True, overflow="crop")
    roles = {row.rank: row.role for row in run.rows.values()}
    for rank, rows in groupby(run.ordered(), lambda row: row.rank):
        table.add_row(str(rank), *_cells(list(rows), roles, wide, unicode))
    return table


def _cells(rows: Sequence[Row], roles: Mapping[int, str], wide: bool, unicode: bool) -> list[str | Text]:
    """Those of a rank; the lanes of a feedback rank share one row, as they share a process."""
    first, step = rows[0], min(row.step for row in rows)
    rate = min((row.rate for row in rows if row.rate is not None), default=None)
    accuracy = [_number(first.accuracy, 100, 1)] if wide else []
    figures = [_number(first.loss, 1, 3), *accuracy, _number(first.test_accuracy, 100, 1)]
    return [first.role, str(step), _number(rate, 1, 0), _busy(rows, wide, unicode), _waits(rows, roles), *figures]


def _busy(rows: Sequence[Row], wide: bool, unicode: bool) -> Text:
    from rich.text import Text

    shares = [row.busy for row in rows if row.busy is not None]
    if not shares:
        return Text("")
    share = min(1.0, sum(shares))
    style = "green" if share >= 0.8 else "yellow" if share >= 0.5 else "red"
    if rows[0].role == "feedback":  # to have time is what it is for
        style = "default"
    return Text(f"{bar(share, WIDE_BAR if wide else BAR, unicode)} {100 * share:3.0f}%", style=style)


def _waits(rows: Sequence[Row], roles: Mapping[int, str]) -> str:
    """Whom a rank waits for, to give or to take what, and the share of its time: ``block 0, alpha 28%``."""
    waits = [row.waits_for for row in rows if row.waits_for is not None]
    share = sum(share for _, share in waits) / len(rows)
    if share < 0.005:
        return ""
    edge, _ = waits[0]
    kind, _, ends = edge.partition(" ")
    other = [int(end) for end in ends.split("->") if end.isdecimal() and int(end) != rows[0].rank]
    if len(other) != 1:  # what learns end to end has no edges of its own
        return f"{edge} {100 * share:.0f}%"
    whom = "blocks" if len(rows) > 1 else roles.get(other[0], f"rank {other[0]}")
    return f"{whom}, {kind} {100 * share:.0f}%"


def _number(value: float | None, scale: float, digits: int) -> str:
    return "" if value is None else f"{value * scale:.{digits}f}"


def can_draw(out: TextIO | None) -> bool:
    """Whether ``out`` is a terminal that knows how to move its cursor."""
    from rich.console import Console

    if out is None or not is_terminal(out) or not has_descriptor(out):
        return False
    return not Console(file=out).is_dumb_terminal


def release(out: TextIO | None) -> None:
    """Gives all rows of a terminal back, also those that another process kept, which was killed."""
    with suppress(OSError, ValueError, RuntimeError):  # the last one in a signal handler that came into a flush
        if out is not None and can_draw(out):
            _write(out, ALL_ROWS)


class Screen:
    """Draws on ``out``; all that it drew is gone when it is left. An output that takes no more stops nothing."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console

        self._out, self._kept, self._size, self._drawn = out, 0, (0, 0), time.monotonic()
        self.unicode = "utf" in (getattr(out, "encoding", None) or "").lower()
        self.colours = not Console(file=out).no_color

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._kept:
            self._kept = 0
            with suppress(OSError, ValueError):
                _write(self._out, ALL_ROWS)

    @property
    def width(self) -> int:
        return self._measure()[0]

    def draw(self, lines: Sequence[str]) -> None:
        """Shows ``lines``, as many of them as there is room for."""
        size = self._measure()
        shown = list(lines)[: max(0, size[1] - LEAST_ABOVE)]
        was_suspended = time.monotonic() - self._drawn > SUSPENDED_SECONDS  # and the shell has written on our rows
        is_same = (len(shown), size) == (self._kept, self._size) and not was_suspended
        text = "" if is_same else self._make_room(len(shown), size)
        first = size[1] - len(shown) + 1
        rows = "".join(f"\x1b[{first + number};1H\x1b[0m{line}\x1b[0m\x1b[K" for number, line in enumerate(shown))
        if shown:  # the region every time: whoever leaves the run in trouble gives all rows back
            text += f"{SAVE}\x1b[1;{first - 1}r{rows}{RESTORE}"
        with suppress(OSError, ValueError):
            _write(self._out, text)
        self._drawn = time.monotonic()

    def _make_room(self, number: int, size: tuple[int, int]) -> str:
        """Takes away what was drawn, and scrolls up what is there until ``number`` rows are free below the cursor."""
        self._kept, self._size = number, size
        return ALL_ROWS + (f"{chr(10) * number}\x1b[{number}A" if number else "")

    def _measure(self) -> tuple[int, int]:
        try:
            size = os.get_terminal_size(self._out.fileno())
        except (OSError, ValueError):
            return 80, 24
        return (size.columns or 80, size.lines or 24)


def _write(out: TextIO, text: str) -> None:
    """At once and in one piece, past the buffer of ``out``: its lock is for others, when a terminal blocks."""
    out.flush()
    write_bytes(out.fileno(), encoded(text, out))
