"""Words for whoever watches the run. An output that takes no more, such as a log on a full disk, stops nothing."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TextIO


def say(text: str, out: TextIO | None = None) -> None:
    """One line, or several, to ``out``, by default the standard output; in one piece, as ranks share it."""
    out = sys.stdout if out is None else out
    with suppress(OSError):
        out.write(f"{text}\n")
        out.flush()


def warn(text: str) -> None:
    """One line to the standard error."""
    say(f"bllpipe: {text}", sys.stderr)
