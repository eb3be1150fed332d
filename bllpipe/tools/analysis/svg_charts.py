"""Charts as SVG text: curves with a band, dots with a spread, stacked bars, and their axes. No library, no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bllpipe.tools.analysis.html_page import colour, dash, element, escape, marker, path, text

__all__ = ["Curve", "Point", "bar_chart", "curve_chart", "dot_chart"]

WIDTH, HEIGHT = 440.0, 280.0
TOP, BOTTOM, RIGHT = 12.0, 46.0, 16.0
GLYPH = 7.0  # width of a digit, px
ROW = 34.0  # height of a bar's row, px
BEHIND = 74.0  # room for the shares behind a bar, px
MOST_MARKERS = 20
Write = Callable[[float, float], str]
MANTISSAS = (1.0, 2.0, 5.0, 10.0)
FARTHEST = 1e100  # what lies beyond is as good as infinite, and its differences may overflow


@dataclass(frozen=True)
class Point:
    """The mean of ``n`` finite values at ``x``, with the smallest and the largest of them."""

    x: float
    mean: float
    low: float
    high: float
    n: int = 1


@dataclass(frozen=True)
class Curve:
    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Paper:
    """The drawing area between the axes."""

    left: float
    height: float = HEIGHT
    right: float = WIDTH - RIGHT
    top: float = TOP

    @property
    def bottom(self) -> float:
        return self.height - BOTTOM


def curve_chart(title: str, curves: Sequence[Curve], x_label: str, y_label: str, share: bool = False) -> str:
    """A line through the means of every curve, over a band from the smallest to the largest value; x begins at 0."""
    points = [point for curve in curves for point in curve.points]
    along = snug_axis(x_label, [0.0, *(point.x for point in points)])
    up = _up_axis(y_label, points, share)
    paper = Paper(_left_margin(up))
    bands = [_band(index, curve, along, up, paper) for index, curve in enumerate(curves)]
    lines = [_line(index, curve, along, up, paper) for index, curve in enumerate(curves)]
    frame = _up_frame(up, paper) + _along_frame(along, paper)
    return _drawing(title, _summary(title, curves), paper, [frame, *bands, *lines])


def dot_chart(
    title: str, places: Sequence[str], curves: Sequence[Curve], x_label: str, y_label: str, share: bool = False
) -> str:
    """Side by side over every place: each curve's mean with a bar to the smallest and largest; ``x`` is the place."""
    up = _up_axis(y_label, [point for curve in curves for point in curve.points], share)
    paper = Paper(_left_margin(up))
    room = (paper.right - paper.left) / max(1, len(places))
    gap = min(24.0, room * 0.8 / max(1, len(curves)))
    parts = [_up_frame(up, paper), _place_names(x_label, places, room, paper)]
    for index, curve in enumerate(curves):
        shift = gap * (index - (len(curves) - 1) / 2)
        for point in curve.points:
            x = paper.left + room * (point.x + 0.5) + shift
            note = f"{curve.name}, {places[int(point.x)]}: {_value(point, up)}"
            parts.append(_dot(index, point, x, up, paper, note))
    return _drawing(title, _summary(title, curves), paper, parts)


def bar_chart(
    title: str, rows: Mapping[str, Mapping[str, float]], kinds: Sequence[str], rows_label: str, label: str
) -> str:
    """A bar a row, made of a piece for each kind: shares, not negative, on an axis that reaches 100 % at least.

    What a row lacks is not drawn, and the shares stand behind the bar.
    """
    along = rounded_axis(label, [0.0, 1.0, *(sum(row.values()) for row in rows.values())], percent)
    left = 14.0 + GLYPH * max(len(name) for name in (rows_label, *rows))
    top = TOP + 12
    paper = Paper(left, top + ROW * len(rows) + BOTTOM, WIDTH - RIGHT - BEHIND, top)
    parts = [_along_frame(along, paper), text(rows_label, left - 8, top - 4, text_anchor="end")]
    for number, (name, row) in enumerate(rows.items()):
        y = paper.top + ROW * number
        parts.append(text(name, left - 8, y + ROW / 2 + 4, text_anchor="end"))
        parts += _pieces(name, row, kinds, along, paper, y)
        shares = " + ".join(percent(row[kind], 0.01).removesuffix(" %") for kind in kinds if kind in row)
        parts.append(text(f"{shares} %", paper.right + 10, y + ROW / 2 + 4))
    return _drawing(title, f"{title}: {len(rows)} bars", paper, parts)


def _pieces(
    name: str, row: Mapping[str, float], kinds: Sequence[str], along: Axis, paper: Paper, y: float
) -> list[str]:
    pieces, start = [], 0.0
    for index, kind in enumerate(kinds):
        value = row.get(kind, 0.0)
        if value > 0:
            x, end = (along.place(edge, paper.left, paper.right) for edge in (start, start + value))
            note = element("title", escape(f"{name}, {kind}: {percent(value, 0.001)}"))
            shape = {"x": x, "y": y + 6, "width": end - x, "height": ROW - 12}
            pieces.append(element("rect", note, class_=f"piece k{index} {colour(index)}", **shape))
            start += value
    return pieces


def _up_axis(label: str, points: Sequence[Point], share: bool) -> Axis:
    values = [value for point in points for value in (point.low, point.high)]
    return rounded_axis(label, values, percent if share else plain)


def _left_margin(up: Axis) -> float:
    return 34.0 + GLYPH * max(len(words) for _, words in up.written())


def _up_frame(up: Axis, paper: Paper) -> str:
    parts = []
    for tick, words in up.written():
        y = up.place(tick, paper.bottom, paper.top)
        parts.append(element("path", d=path([(paper.left, y), (paper.right, y)]), class_="grid"))
        parts.append(text(words, paper.left - 7, y + 4, text_anchor="end"))
    middle = (paper.top + paper.bottom) / 2
    parts.append(text(up.label, 14.0, middle, text_anchor="middle", transform=f"rotate(-90 14 {middle:.0f})"))
    return "".join(parts)


def _along_frame(along: Axis, paper: Paper) -> str:
    parts = [element("path", d=path([(paper.left, paper.bottom), (paper.right, paper.bottom)]), class_="axis")]
    for tick, words in along.written():
        x = along.place(tick, paper.left, paper.right)
        parts.append(element("path", d=path([(x, paper.bottom), (x, paper.bottom + 5)]), class_="axis"))
        parts.append(text(words, x, paper.bottom + 19, text_anchor="middle"))
    parts.append(_label_below(along.label, paper))
    return "".join(parts)


def _label_below(label: str, paper: Paper) -> str:
    return text(label, (paper.left + paper.right) / 2, paper.bottom + 38, text_anchor="middle")


def _place_names(label: str, places: Sequence[str], room: float, paper: Paper) -> str:
    """Every place's name below it; every second or third where they would touch."""
    widest = GLYPH * max([len(place) for place in places], default=0) + 8
    every = max(1, -(-int(widest) // max(1, int(room))))
    parts = [element("path", d=path([(paper.left, paper.bottom), (paper.right, paper.bottom)]), class_="axis")]
    for index, place in enumerate(places):
        if index % every == 0:
            x = paper.left + room * (index + 0.5)
            parts.append(text(place, x, paper.bottom + 19, text_anchor="middle"))
    parts.append(_label_below(label, paper))
    return "".join(parts)


def _band(index: int, curve: Curve, along: Axis, up: Axis, paper: Paper) -> str:
    if all(point.low == point.high for point in curve.points):
        return ""
    xs = [along.place(point.x, paper.left, paper.right) for point in curve.points]
    lows = [up.place(point.low, paper.bottom, paper.top) for point in curve.points]
    highs = [up.place(point.high, paper.bottom, paper.top) for point in curve.points]
    outline = [*zip(xs, highs, strict=True), *reversed(list(zip(xs, lows, strict=True)))]
    return element("path", d=path(outline, closed=True), class_=f"band {colour(index)}")


def _line(index: int, curve: Curve, along: Axis, up: Axis, paper: Paper) -> str:
    if not curve.points:
        return ""
    places = [
        (along.place(p.x, paper.left, paper.right), up.place(p.mean, paper.bottom, paper.top)) for p in curve.points
    ]
    parts = [element("path", d=path(places), class_=f"line {colour(index)}", stroke_dasharray=dash(index))]
    for at in _marked(len(places)):
        point = curve.points[at]
        note = f"{curve.name}, {along.label} {point.x:.6g}: {_value(point, up)}"
        parts.append(marker(index, *places[at], note))
    return "".join(parts)


def _marked(num_points: int) -> list[int]:
    """The points that get a marker: all, or some at equal distances and the last."""
    every = -(-num_points // MOST_MARKERS)
    return sorted({num_points - 1 - back for back in range(0, num_points, every)})


def _dot(index: int, point: Point, x: float, up: Axis, paper: Paper, note: str) -> str:
    low, mean, high = (up.place(value, paper.bottom, paper.top) for value in (point.low, point.mean, point.high))
    bar = element("path", d=path([(x, low), (x, high)]), class_=f"line {colour(index)}") if low != high else ""
    return bar + marker(index, x, mean, note, size=5.0)


def _value(point: Point, up: Axis) -> str:
    """The mean, and the spread if there is one, with two digits more than the ticks."""
    step = nice_step(up.high - up.low, 5) / 100
    mean, low, high = (up.write(value, step) for value in (point.mean, point.low, point.high))
    return f"{mean} ({low} to {high}, n = {point.n})" if point.n > 1 else mean


def _summary(title: str, curves: Sequence[Curve]) -> str:
    return f"{title}: {', '.join(curve.name for curve in curves if curve.points)}"


def _drawing(title: str, label: str, paper: Paper, parts: Sequence[str]) -> str:
    content = element("title", escape(title)) + "".join(parts)
    box = f"0 0 {WIDTH:.0f} {paper.height:.0f}"
    return element("svg", content, viewBox=box, role="img", aria_label=label, class_="chart")


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
