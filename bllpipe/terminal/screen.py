"""The lower rows of a terminal, kept for a view, while whatever any process prints scrolls by above.

The rows are kept by a scrolling region (DECSTBM), as package managers keep their progress bar: lines of other ranks
need not know of the view, and are not garbled by it. A drawing is one write, which leaves the cursor where it was.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import TextIO

LEAST_ABOVE = 3  # rows that stay free for other lines
SAVE, RESTORE = "\x1b7", "\x1b8"


def can_draw(out: TextIO) -> bool:
    """Whether ``out`` is a terminal that knows how to move its cursor."""
    if not out.isatty():
        return False
    from rich.console import Console  # not for --help

    return not Console(file=out).is_dumb_terminal


def release(out: TextIO) -> None:
    """Gives all rows back, for a rank that was killed while it kept some."""
    if can_draw(out):
        with suppress(OSError):
            out.write(f"{SAVE}\x1b[r{RESTORE}")
            out.flush()


class Screen:
    """Draws on ``out``; all that it wrote is gone when it is left. An output that takes no more stops nothing."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console

        self._out, self._kept, self._size = out, 0, (0, 0)
        self.unicode = "utf" in (out.encoding or "").lower()
        self.colours = not Console(file=out).no_color

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._kept:
            _, height = self._size
            first = height - self._kept + 1
            self._write(f"{SAVE}\x1b[r{RESTORE}{SAVE}\x1b[{first};1H\x1b[J{RESTORE}")
            self._kept = 0

    @property
    def width(self) -> int:
        return self._measure()[0]

    def draw(self, lines: Sequence[str]) -> None:
        """Shows ``lines``, as many of them as there is room for."""
        size = self._measure()
        shown = list(lines)[: max(0, size[1] - LEAST_ABOVE)]
        text = "" if (len(shown), size) == (self._kept, self._size) else self._keep(len(shown), size)
        first = size[1] - len(shown) + 1
        rows = "".join(f"\x1b[{first + number};1H\x1b[0m{line}\x1b[0m\x1b[K" for number, line in enumerate(shown))
        self._write(f"{text}{SAVE}{rows}{RESTORE}" if shown else text)

    def _keep(self, number: int, size: tuple[int, int]) -> str:
        """Makes room for ``number`` rows at the bottom: scrolls what is there up, and keeps the cursor above them."""
        more = max(0, number - self._kept) if size == self._size else number
        above = size[1] - number
        self._kept, self._size = number, size
        scrolled = "\x1b[r\x1b8" if not more else f"\x1b8{chr(10) * more}\x1b[{more}A"
        return f"{SAVE}\x1b[r{scrolled}{SAVE}\x1b[1;{above}r{RESTORE}"

    def _measure(self) -> tuple[int, int]:
        try:
            size = os.get_terminal_size(self._out.fileno())
        except OSError:
            return 80, 24
        return (size.columns or 80, size.lines or 24)

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._out.write(text)
            self._out.flush()
