"""Axes: which values get a tick, how they are written, and where they lie on the paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Write = Callable[[float, float], str]
MANTISSAS = (1.0, 2.0, 5.0, 10.0)
FARTHEST = 1e100  # what lies beyond is as good as infinite, and its differences may overflow


def is_drawable(value: object) -> bool:
    """A number that has a place on an axis: neither NaN nor infinite nor absurd."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < FARTHEST


def nice_step(span: float, count: int) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten that divides ``span`` into at most ``count`` parts."""
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next((m * power for m in MANTISSAS if m * power >= rough * (1 - 1e-9)), 10.0 * power)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers at equal distances, the first at or below ``low`` and the last at or above ``high``."""
    low, high = _apart(low, high)
    step = nice_step(high - low, count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def plain(value: float, step: float) -> str:
    """``value`` with as many digits as ticks ``step`` apart need: 0.25, 1,500, 2e+06."""
    if abs(value) < step * 1e-6:
        return "0"
    if max(abs(value), step) >= 1e6 or step < 1e-4:
        return f"{value:.6g}"
    return f"{value:,.{_decimals(step)}f}".replace("-", "\N{MINUS SIGN}")


def percent(fraction: float, step: float) -> str:
    """A fraction in percent, with as many digits as ticks ``step`` apart need."""
    return f"{plain(100 * fraction, 100 * step)} %"


@dataclass(frozen=True)
class Axis:
    """From values to places on the paper."""

    label: str
    ticks: tuple[float, ...]
    low: float
    high: float
    write: Write = plain

    def place(self, value: float, start: float, end: float) -> float:
        """Where ``value`` lies when ``low`` lies at ``start`` and ``high`` at ``end``."""
        return start + (value - self.low) / (self.high - self.low) * (end - start)

    def written(self) -> list[tuple[float, str]]:
        """Every tick with its text."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else self.high - self.low
        return [(tick, self.write(tick, step)) for tick in self.ticks]


def rounded_axis(label: str, values: Iterable[float], write: Write = plain, count: int = 5) -> Axis:
    """An axis that begins and ends at a tick; for values up the page."""
    known = list(values) or [0.0, 1.0]
    ticks = nice_ticks(min(known), max(known), count)
    return Axis(label, tuple(ticks), ticks[0], ticks[-1], write)


def snug_axis(label: str, values: Iterable[float], write: Write = plain, count: int = 6) -> Axis:
    """An axis that begins and ends with the values; for time along the page."""
    known = list(values) or [0.0, 1.0]
    low, high = _apart(min(known), max(known))
    slack = 1e-9 * (high - low)
    ticks = [tick for tick in nice_ticks(low, high, count) if low - slack <= tick <= high + slack]
    return Axis(label, tuple(ticks), low, high, write)


def _apart(low: float, high: float) -> tuple[float, float]:
    """Makes room round a single value, so that an axis has a length."""
    size = max(abs(low), abs(high))
    if high - low > 1e-6 * size:
        return low, high
    room = 0.05 * size or 0.5
    return low - room, high + room


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))
