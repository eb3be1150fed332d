"""A live table of a run, one row for every block and feedback rank: how busy the rank is, and for which rank it waits.
Of several replicas of a block the row shows the slowest. The table occupies the lowest rows of the terminal; the output
of all processes scrolls above it.

A scroll region (DECSTBM) reserves the rows, as the progress bars of package managers do: the other ranks print without
knowing of the table, and neither overwrites the other. A drawing is one write, which restores the cursor:

  | lines of any rank         |  scrolls, row 1 to height - reserved
  | _                         |  the cursor: all below it belongs to the table, also where a resize has moved it
  | run  running  bll/ranks   |  the reserved rows
  |    role     step  img/s   |
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from textwrap import wrap
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TextIO

from bllpipe.tools.monitoring.run_status import Follower, Row, first_reason
from bllpipe.utils.console import encoded, has_descriptor, is_terminal, write_bytes
from bllpipe.utils.process import is_in_background

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

BAR, WIDE_BAR = 8, 16  # characters
REPLICA = re.compile(r" replica (\d+)$")  # in the role of one of several
MIN_WIDTHS = {"step": 5, "waits for": 21}  # so that columns keep their width between drawings
WIDE = 100  # terminal columns that all table columns need
SILENT_SECONDS = 30.0  # after which the header shows that the run writes nothing
SUSPENDED_SECONDS = 3.0  # without a drawing: the process was stopped, as by Ctrl-Z
MIN_ROWS_ABOVE = 3  # rows that remain for other output
SAVE, RESTORE, ERASE_BELOW = "\x1b7", "\x1b8", "\x1b[J"
RESET = f"{SAVE}\x1b[r{RESTORE}{ERASE_BELOW}"  # no scroll region, and the table erased


def lines(run: Follower, width: int, colours: bool = False, unicode: bool = True) -> list[str]:
    """The table as lines of at most ``width`` columns; with ``colours`` they contain ANSI sequences."""
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
    reason = first_reason(run.status)
    for line in wrap(f"{run.status.get('status')}: {reason}", width) if reason else ():
        console.print(Text(line), no_wrap=True, overflow="crop")
    text = out.getvalue()
    return (text if unicode else text.encode("ascii", "replace").decode()).splitlines()


def header(run: Follower, width: int) -> str:
    """Run, status, method, engine, epoch, steps and time left in one line; a long run name is shortened."""
    total = "?" if run.last_step is None else run.last_step
    parts = [
        str(run.status.get("status", "starting")),
        f"{run.config.method}/{run.config.engine}",
        f"epoch {run.epoch + 1}" + ("" if run.config.steps else f"/{run.config.epochs}"),
        f"step {run.step}/{total}",
    ]
    if run.seconds_left is not None:
        parts.append(f"{clock(run.seconds_left)} left")
    if run.status.get("status") == "running" and (silent := time.time() - run.written) > SILENT_SECONDS:
        parts.append(f"silent for {clock(silent)}")
    text, name = "  ".join(parts), run.directory.name
    space = max(8, width - len(text) - 2)
    return f"{name if len(name) <= space else f'{name[: space - 3]}...'}  {text}"


def clock(seconds: float) -> str:
    """``1:02`` or ``1:00:02``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def bar(share: float, length: int = BAR, unicode: bool = True) -> str:
    """A bar, filled to the fraction ``share``: ``######----``."""
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
        table.add_column(name, justify=justify, min_width=MIN_WIDTHS.get(name), no_wrap=True, overflow="crop")
    roles = {row.rank: REPLICA.sub(r"/\1", row.role) for row in run.rows.values()}
    for rows in _places(run.ordered(), wide):
        table.add_row(str(rows[0].rank), *_cells(rows, roles, wide, unicode))
    return table


def _places(rows: Sequence[Row], wide: bool) -> list[list[Row]]:
    """The rows of every feedback rank, and of every block one: of its slowest replica, which waits least, with the
    metrics of the first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(REPLICA.sub("", row.role), []).append(row)
    return [[_slowest(each, wide)] if REPLICA.search(each[0].role) else each for each in found.values()]


def _slowest(replicas: Sequence[Row], wide: bool) -> Row:
    """The row of the slowest replica: ``block 0/2``, in a ``wide`` table ``block 0/2 of 3``."""
    first, slowest = replicas[0], max(replicas, key=lambda row: -1.0 if row.busy is None else row.busy)
    role = REPLICA.sub(r"/\1", slowest.role) + (f" of {len(replicas)}" if wide else "")
    metrics = {name: getattr(first, name) for name in ("loss", "accuracy", "test_accuracy")}
    return replace(slowest, step=min(row.step for row in replicas), role=role, **metrics)


def _cells(rows: Sequence[Row], roles: Mapping[int, str], wide: bool, unicode: bool) -> list[str | Text]:
    """The cells of one rank. All feedback loops of a feedback rank share one row, as they share a process."""
    first, step = rows[0], min(row.step for row in rows)
    rate = min((row.rate for row in rows if row.rate is not None), default=None)
    accuracy = [_number(first.accuracy, 100, 1)] if wide else []
    metrics = [_number(first.loss, 1, 3), *accuracy, _number(first.test_accuracy, 100, 1)]
    return [first.role, str(step), _number(rate, 1, 0), _busy(rows, wide, unicode), _waits(rows, roles), *metrics]


def _busy(rows: Sequence[Row], wide: bool, unicode: bool) -> Text:
    from rich.text import Text

    shares = [row.busy for row in rows if row.busy is not None]
    if not shares:
        return Text("")
    share = min(1.0, sum(shares))
    style = "green" if share >= 0.8 else "yellow" if share >= 0.5 else "red"
    if rows[0].role.startswith("feedback"):  # a feedback rank should be idle most of the time
        style = "default"
    return Text(f"{bar(share, WIDE_BAR if wide else BAR, unicode)} {100 * share:3.0f}%", style=style)


def _waits(rows: Sequence[Row], roles: Mapping[int, str]) -> str:
    """The rank and the kind of message for which a rank waits, and the fraction of time: ``block 0, alpha 28%``."""
    waits = [max(row.waiting.items(), key=lambda item: item[1]) for row in rows if row.waiting]
    share = sum(share for _, share in waits) / len(rows)
    if share < 0.005:
        return ""
    edge, _ = waits[0]
    kind, _, ends = edge.partition(" ")
    other = [int(end) for end in ends.split("->") if end.isdecimal() and int(end) != rows[0].rank]
    if len(other) != 1:  # an edge of end-to-end training does not name two ranks
        return f"{edge} {100 * share:.0f}%"
    peer = "blocks" if len(rows) > 1 else roles.get(other[0], f"rank {other[0]}")
    return f"{peer}, {kind} {100 * share:.0f}%"


def _number(value: float | None, scale: float, digits: int) -> str:
    return "" if value is None else f"{value * scale:.{digits}f}"


def can_draw(out: TextIO | None) -> bool:
    """Whether ``out`` is a terminal with a cursor that can be moved."""
    from rich.console import Console

    if out is None or not is_terminal(out) or not has_descriptor(out):
        return False
    return not Console(file=out).is_dumb_terminal


def release(out: TextIO | None) -> None:
    """Resets the scroll region of a terminal, also after the process that set it was killed."""
    with suppress(OSError, ValueError, RuntimeError):  # RuntimeError: a signal handler has interrupted a flush
        if out is not None and can_draw(out):
            _write(out, RESET)


class Screen:
    """Draws on the terminal ``out``, and erases the drawing at exit. A closed or full output is ignored."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console

        self._out, self._reserved, self._size, self._drawn = out, 0, (0, 0), time.monotonic()
        self.unicode = "utf" in (getattr(out, "encoding", None) or "").lower()
        self.colours = not Console(file=out).no_color

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reserved:
            self._reserved = 0
            with suppress(OSError, ValueError):
                _write(self._out, RESET)

    @property
    def width(self) -> int:
        return self._measure()[0]

    def draw(self, lines: Sequence[str]) -> None:
        """Draws as many of ``lines`` as fit; none in the background, where a shell has the terminal."""
        if has_descriptor(self._out) and is_in_background(self._out.fileno()):
            self._reserved = 0
            return
        size = self._measure()
        shown = list(lines)[: max(0, size[1] - MIN_ROWS_ABOVE)]
        was_suspended = time.monotonic() - self._drawn > SUSPENDED_SECONDS  # and the shell has written on our rows
        is_same = (len(shown), size) == (self._reserved, self._size) and not was_suspended
        text = "" if is_same else RESET  # erases the drawing, and scrolls up until rows are free below the cursor
        if shown and not is_same:
            text += f"{chr(10) * len(shown)}\x1b[{len(shown)}A"
        self._reserved, self._size = len(shown), size
        first = size[1] - len(shown) + 1
        rows = "".join(f"\x1b[{first + number};1H\x1b[0m{line}\x1b[0m\x1b[K" for number, line in enumerate(shown))
        if shown:  # set the region every time: a failing rank calls release()
            text += f"{SAVE}\x1b[1;{first - 1}r{rows}{RESTORE}"
        with suppress(OSError, ValueError):
            _write(self._out, text)
        self._drawn = time.monotonic()

    def _measure(self) -> tuple[int, int]:
        try:
            size = os.get_terminal_size(self._out.fileno())
        except (OSError, ValueError):
            return 80, 24
        return (size.columns or 80, size.lines or 24)


def _write(out: TextIO, text: str) -> None:
    """Writes all of ``text`` at once and past the buffer of ``out``, whose lock other threads must get while a terminal
    blocks this one."""
    out.flush()
    write_bytes(out.fileno(), encoded(text, out))
