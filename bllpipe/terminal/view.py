"""A followed run as a table: a row a rank, how busy each is, and what it waits for."""

from __future__ import annotations

import io

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bllpipe.terminal.following import Follower, Row

BAR = 10  # characters
WIDE = 100  # columns from which on everything fits


def lines(run: Follower, width: int, colours: bool = False, unicode: bool = True) -> list[str]:
    """The view as lines of at most ``width`` columns; with ``colours``, they hold ANSI sequences."""
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=colours,
        color_system="standard" if colours else None,
        legacy_windows=False,
    )
    console.print(Text(header(run), style="bold"), no_wrap=True, overflow="crop")
    console.print(_table(run, width, unicode))
    text = out.getvalue()
    return (text if unicode else text.encode("ascii", "replace").decode()).splitlines()


def header(run: Follower) -> str:
    """Run, state, method, engine, epoch, steps and time left in one line."""
    total = "?" if run.last_step is None else run.last_step
    parts = [
        run.directory.name,
        str(run.status.get("status", "starting")),
        f"{run.config.method}/{run.config.engine}",
        f"epoch {run.epoch + 1}" + ("" if run.config.steps else f"/{run.config.epochs}"),
        f"step {run.step}/{total}",
    ]
    if run.seconds_left is not None:
        parts.append(f"{clock(run.seconds_left)} left")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """``1:02`` or ``1:00:02``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def bar(share: float, unicode: bool = True) -> str:
    """``share`` of a bar filled: ``######----``."""
    full, empty = ("█", "░") if unicode else ("#", "-")
    filled = round(share * BAR)
    return full * filled + empty * (BAR - filled)


def _table(run: Follower, width: int, unicode: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD if unicode and width >= WIDE else None, pad_edge=False, padding=(0, 1))
    for name in ("", "role", "step", "img/s", "busy", "waits for", "loss", "acc %", "test %"):
        left = name in ("role", "busy", "waits for")
        table.add_column(name, justify="left" if left else "right", no_wrap=True, overflow="crop")
    for row in run.ordered():
        table.add_row(*_cells(row, unicode))
    return table


def _cells(row: Row, unicode: bool) -> list[str | Text]:
    most = row.waits_for
    waits = "" if most is None or most[1] < 0.005 else f"{most[0]} {100 * most[1]:.0f}%"
    busy: str | Text = ""
    if row.busy is not None:
        style = "green" if row.busy >= 0.8 else "yellow" if row.busy >= 0.5 else "red"
        busy = Text(f"{bar(row.busy, unicode)} {100 * row.busy:3.0f}%", style=style)
    name = row.actor if row.role == "feedback" else row.role
    figures = [_number(row.loss, 1, 3), _number(row.accuracy, 100, 1), _number(row.test_accuracy, 100, 1)]
    return [str(row.rank), name, str(row.step), _number(row.rate, 1, 0), busy, waits, *figures]


def _number(value: float | None, scale: float, digits: int) -> str:
    return "" if value is None else f"{value * scale:.{digits}f}"
