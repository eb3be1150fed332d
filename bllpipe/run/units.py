"""Sizes and ages as a table of ``bllpipe ckpt`` shows them."""

from __future__ import annotations

UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def size_text(number: int) -> str:
    """Bytes in the unit that leaves few digits, such as 1.2 MB."""
    size, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def age_text(seconds: float) -> str:
    """An age in the largest unit of which it has one, such as 3 min."""
    length, unit = next((each for each in UNITS if seconds >= each[0]), UNITS[-1])
    return f"{seconds // length:.0f} {unit}"
