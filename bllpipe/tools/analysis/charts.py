"""The charts of a report: curves with a band, dots with a spread, and stacked bars, drawn by matplotlib.

A series has a colour, a dash pattern and a marker, so that series can be told apart without colours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from bllpipe.tools.analysis.figure_style import PAPER, SERIES, Mark, clean, drawing, new_figure, svg_text
from bllpipe.tools.analysis.report_data import Point

WIDTH, HEIGHT = 440.0, 280.0
ROW = 34.0  # height of a bar's row
GLYPH = 8.0  # width of a letter
MOST_MARKERS = 20
DASHES = ("-", (0, (7, 3)), (0, (2, 3)), (0, (9, 3, 2, 3)), (0, (12, 4)))
MARKERS = ("o", "s", "^", "D", "v")
STEPS = (1, 2, 5, 10)  # between ticks, times a power of ten
Style = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    name: str
    points: Sequence[Point]


def look(index: int) -> Style:
    """Dash patterns shift by one every round of colours, so that thirty series look different."""
    return {
        "color": SERIES[index % len(SERIES)].light,
        "linestyle": DASHES[(index + index // len(SERIES)) % len(DASHES)],
        "linewidth": 2,
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 8,
        "markeredgecolor": PAPER.light,
        "clip_on": False,
    }


@drawing
def curve_chart(title: str, curves: Sequence[Curve], x_label: str, y_label: str, share: bool = False) -> str:
    """A line through the means of every curve, over a band from the smallest to the largest value; x begins at 0."""
    figure = new_figure(WIDTH, HEIGHT, "constrained")
    axes, marks = figure.add_subplot(xlabel=x_label, ylabel=y_label), {}
    _scale_up(axes, curves, share)
    for index, curve in enumerate(curves):
        if not curve.points:
            continue
        xs = [point.x for point in curve.points]
        if any(point.low != point.high for point in curve.points):
            lows, highs = [point.low for point in curve.points], [point.high for point in curve.points]
            band = axes.fill_between(xs, lows, highs, color=SERIES[index % len(SERIES)].light, alpha=0.16, linewidth=0)
            band.set(gid=f"band-{index}", clip_on=False)
            marks[f"band-{index}"] = Mark("band", (curve.name,))
        every = -(-len(xs) // MOST_MARKERS)
        marked = sorted(range(len(xs) - 1, -1, -every))  # the last one always
        (line,) = axes.plot(xs, [point.mean for point in curve.points], markevery=marked, **look(index))
        line.set_gid(f"line-{index}")
        points = [curve.points[at] for at in marked]
        notes = [f"{curve.name}, {x_label} {point.x:.6g}: {_value(point, share)}" for point in points]
        marks[f"line-{index}"] = Mark("mark", notes)
    axes.set_xlim(0, max([point.x for curve in curves for point in curve.points], default=0) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    return svg_text(figure, title, "chart", marks, _summary(title, curves))


@drawing
def dot_chart(
    title: str, places: Sequence[str], curves: Sequence[Curve], x_label: str, y_label: str, share: bool = False
) -> str:
    """Side by side over every place: each curve's mean with a bar to the smallest and largest; ``x`` is the place."""
    figure = new_figure(WIDTH, HEIGHT, "constrained")
    axes, marks = figure.add_subplot(xlabel=x_label, ylabel=y_label), {}
    _scale_up(axes, curves, share)
    gap = min(0.3, 0.8 / max(1, len(curves)))
    for index, curve in enumerate(curves):
        if not curve.points:
            continue
        xs = [point.x + gap * (index - (len(curves) - 1) / 2) for point in curve.points]
        style = look(index)
        lows, highs = [point.low for point in curve.points], [point.high for point in curve.points]
        axes.vlines(xs, lows, highs, colors=str(style["color"]), linewidth=2)
        dots = Line2D(xs, [point.mean for point in curve.points], **style | {"linestyle": "none"})
        dots.set_gid(f"dots-{index}")
        axes.add_line(dots)
        notes = [f"{curve.name}, {places[int(point.x)]}: {_value(point, share)}" for point in curve.points]
        marks[f"dots-{index}"] = Mark("mark", notes)
    axes.set_xlim(-0.5, max(1, len(places)) - 0.5)
    widest = GLYPH * max(map(len, places), default=0)
    every = max(1, -int(-widest * len(places) // (WIDTH - 70)))  # names that would touch are left out
    axes.set_xticks(range(0, len(places), every), list(map(clean, places[::every])))
    return svg_text(figure, title, "chart", marks, _summary(title, curves))


@drawing
def bar_chart(
    title: str, rows: Mapping[str, Mapping[str, float]], kinds: Sequence[str], rows_label: str, label: str
) -> str:
    """A bar a row, made of a piece for each kind: shares, not negative, on an axis that reaches 100 % at least.

    What a row lacks is not drawn, and the shares stand behind the bar.
    """
    figure = new_figure(WIDTH, ROW * len(rows) + 75, "constrained")
    axes, marks = figure.add_subplot(xlabel=label), {}
    axes.grid(False)
    axes.text(-0.02, 1.0, rows_label, ha="right", va="bottom", transform=axes.transAxes)
    for number, (name, row) in enumerate(rows.items()):
        start = 0.0
        for index, kind in enumerate(kinds):
            if (value := row.get(kind, 0.0)) > 0:
                axes.add_patch(Rectangle((start, number - 0.32), value, 0.64, gid=f"{number}-{index}", **_piece(index)))
                marks[f"{number}-{index}"] = Mark("piece", (f"{name}, {kind}: {100 * value:.1f} %",))
                start += value
        shares = " + ".join(f"{100 * row[kind]:.0f}" for kind in kinds if kind in row)
        axes.text(1.03, number, f"{shares} %", va="center", transform=axes.get_yaxis_transform())
    axes.set_xlim(0, max([1.0, *(sum(row.values()) for row in rows.values())]))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), list(map(clean, rows)))
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    return svg_text(figure, title, "chart", marks, f"{title}: {len(rows)} bars")


def _piece(index: int) -> Style:
    """The first piece of a bar is full, the others are pale with a dashed edge."""
    colour = SERIES[index % len(SERIES)]
    face, dash = (colour.light, "-") if index == 0 else (colour.tint.light, (0, (4, 2)))
    return {"facecolor": face, "edgecolor": colour.light, "linestyle": dash, "linewidth": 1.5, "clip_on": False}


@drawing
def series_key(index: int, line: bool) -> str:
    """What stands beside the name of a series in a legend."""
    figure, style = new_figure(34, 14), look(index) | ({} if line else {"linestyle": "none"})
    figure.add_artist(Line2D([0.03, 0.5, 0.97], [0.5] * 3, markevery=[1], **style))
    return svg_text(figure, "", "key", {})


@drawing
def piece_key(index: int) -> str:
    """The same for the pieces of bars."""
    figure = new_figure(34, 14)
    figure.add_artist(Rectangle((0.1, 0.15), 0.8, 0.7, transform=figure.transFigure, **_piece(index)))
    return svg_text(figure, "", "key", {})


def _scale_up(axes: Axes, curves: Sequence[Curve], share: bool) -> None:
    """The axis up the page begins and ends at a tick."""
    values = [value for curve in curves for point in curve.points for value in (point.low, point.high)] or [0.0, 1.0]
    low, high = min(values), max(values)
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # a single value
        room = 0.05 * abs(low) or 0.5
        low, high = low - room, high + room
    ticks = MaxNLocator(5, steps=STEPS).tick_values(low, high)
    axes.set_yticks(ticks)
    axes.set_ylim(ticks[0], ticks[-1])
    if share:
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))


def _value(point: Point, share: bool) -> str:
    """The mean, and the spread if there is one."""
    mean, low, high = (
        f"{100 * value:.2f} %" if share else f"{value:.4g}" for value in (point.mean, point.low, point.high)
    )
    return f"{mean} ({low} to {high}, n = {point.n})" if point.n > 1 else mean


def _summary(title: str, curves: Sequence[Curve]) -> str:
    return f"{title}: {', '.join(curve.name for curve in curves if curve.points)}"
