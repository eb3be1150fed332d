"""The lower rows of a terminal, kept for a view, while whatever any process prints scrolls by above.

The rows are kept by a scrolling region (DECSTBM), as package managers keep their progress bar: lines of other ranks
need not know of the view, and are not garbled by it. A drawing is one write, which leaves the cursor where it was:

  | lines of any rank         |  scrolls, row 1 to height - kept
  | _                         |  the cursor: everything below it is the view's, also where a resize has moved it
  | run  running  bll/ranks   |  the rows kept
  |    role     step  img/s   |
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import TextIO

LEAST_ABOVE = 3  # rows that stay free for other lines
SAVE, RESTORE, ERASE_BELOW = "\x1b7", "\x1b8", "\x1b[J"
ALL_ROWS = f"{SAVE}\x1b[r{RESTORE}{ERASE_BELOW}"  # scroll again, and nothing is left of the view


def can_draw(out: TextIO) -> bool:
    """Whether ``out`` is a terminal that knows how to move its cursor."""
    if not out.isatty():
        return False
    from rich.console import Console  # not for --help

    return not Console(file=out).is_dumb_terminal


def release(out: TextIO) -> None:
    """Gives all rows of a terminal back, also those that another process kept, which was killed."""
    with suppress(OSError, ValueError):
        if can_draw(out):
            _write(out, ALL_ROWS)


class Screen:
    """Draws on ``out``; all that it drew is gone when it is left. An output that takes no more stops nothing."""

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
        text = "" if (len(shown), size) == (self._kept, self._size) else self._make_room(len(shown), size)
        first = size[1] - len(shown) + 1
        rows = "".join(f"\x1b[{first + number};1H\x1b[0m{line}\x1b[0m\x1b[K" for number, line in enumerate(shown))
        if shown:  # the region every time: whoever leaves the run in trouble gives all rows back
            text += f"{SAVE}\x1b[1;{first - 1}r{rows}{RESTORE}"
        with suppress(OSError, ValueError):
            _write(self._out, text)

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
    left = text.encode(out.encoding or "ascii", "replace")
    while left:
        left = left[os.write(out.fileno(), left) :]
