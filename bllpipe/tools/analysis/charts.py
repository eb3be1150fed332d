"""The charts of a report and their style: curves with a band, dots with a spread, stacked bars, drawn by matplotlib.

A series has a colour, a dash pattern and a marker, so that series can be told apart without colours.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from bllpipe.utils.console import percent

if TYPE_CHECKING:
    from bllpipe.tools.analysis.report_data import Point  # torch

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# What XML cannot carry: control characters, halves of surrogate pairs, and two code points that are none.
UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
TINT = 0.42  # how much of a colour is in its tint


@dataclass(frozen=True)
class Colour:
    """A colour in the light scheme and in the dark one."""

    light: str
    dark: str

    @property
    def tint(self) -> Colour:
        """The colour mixed with the paper."""
        return Colour(_mixed(self.light, PAPER.light), _mixed(self.dark, PAPER.dark))


def _mixed(colour: str, paper: str) -> str:
    red, green, blue = (TINT * x + (1 - TINT) * y for x, y in zip(to_rgb(colour), to_rgb(paper), strict=True))
    return to_hex((red, green, blue))


PAPER, INK, SOFT = Colour("#ffffff", "#14171b"), Colour("#1b1f24", "#e6e9ed"), Colour("#57606a", "#a3acb7")
RULE, BUBBLE = Colour("#d5dae0", "#353b43"), Colour("#e9edf1", "#23282f")
BLUE, ORANGE, GREEN = Colour("#0068a8", "#62b5ee"), Colour("#c04a00", "#f2935c"), Colour("#00794f", "#35c79c")
PINK, OLIVE, GREY = Colour("#9c4386", "#e29ad0"), Colour("#7d6100", "#dfc14f"), Colour("#4d5560", "#b4bbc4")
SERIES = (BLUE, ORANGE, GREEN, PINK, OLIVE, GREY)
ALL = (PAPER, INK, SOFT, RULE, BUBBLE, *SERIES, *(colour.tint for colour in SERIES))

# matplotlib writes colours into style attributes, which only a rule with !important overrides, and those behind a
# hatching into attributes of their own.
DARK_RULES = "\n".join(
    f'[style*="fill: {colour.light}"], [fill="{colour.light}"] {{ fill: {colour.dark} !important; }}\n'
    f'[style*="stroke: {colour.light}"] {{ stroke: {colour.dark} !important; }}'
    for colour in ALL
)
RULES = f"""
svg text {{ font-family: system-ui, sans-serif !important; }}
svg .label text {{ paint-order: stroke; stroke: {PAPER.light}; stroke-width: 2.5px; stroke-linejoin: round;
  pointer-events: none; }}
@media (prefers-color-scheme: dark) {{
svg .label text {{ stroke: {PAPER.dark}; }}
{DARK_RULES}
}}
"""
STYLE: dict[str, Any] = {
    **{"svg.fonttype": "none", "svg.hashsalt": "bllpipe", "text.parse_math": False, "path.simplify": False},
    **{"figure.dpi": 72},  # one unit of the SVG is a point of matplotlib
    **{"font.family": ["DejaVu Sans"], "font.size": 13, "axes.labelsize": 13},
    **{"text.color": INK.light, "axes.labelcolor": INK.light, "xtick.labelcolor": INK.light},
    **{"ytick.labelcolor": INK.light, "axes.edgecolor": SOFT.light, "xtick.color": SOFT.light},
    **{"axes.facecolor": "none", "figure.facecolor": PAPER.light, "savefig.facecolor": "auto"},
    **{"axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False},
    **{"axes.grid": True, "axes.grid.axis": "y", "grid.color": RULE.light, "axes.axisbelow": True},
    **{"ytick.major.size": 0, "axes.ymargin": 0},
    **{"lines.linewidth": 2, "lines.markersize": 8, "lines.markeredgecolor": PAPER.light},
    **{"axes.formatter.useoffset": False, "lines.scale_dashes": False, "hatch.linewidth": 0.9},
}
drawing = matplotlib.style.context(["default", STYLE])  # a decorator of what makes a figure


@drawing
def save(figure: Figure, file: io.StringIO | Path, **options: Any) -> None:
    """In our style, whatever the user's own is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser may have another one
        figure.savefig(file, **options)


def clean(text: object) -> str:
    """Text from anywhere, without what no SVG and no HTML can carry."""
    return UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", str(text))


@dataclass(frozen=True)
class Mark:
    """What an artist shows: a class for tests and styles, and a note on each of its shapes for the pointer."""

    name: str
    notes: Sequence[str] = ()


def svg_text(
    figure: Figure, title: str, look: str, marks: Mapping[str, Mark], label: str = "", standalone: bool = False
) -> str:
    """The figure as an ``svg`` element of the class ``look``, the same bytes for the same figure.

    Args:
        marks: what the artists show, by their gid.
        label: the title for screen readers, if it says more.
        standalone: brings its own size and colours, which in a page are those of the page.
    """
    save(figure, file := io.StringIO(), format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    style = f"<style>{RULES}</style>" if standalone else ""
    root = ElementTree.fromstring(re.sub("<style.*?</style>", style, file.getvalue(), flags=re.DOTALL))  # noqa: S314  # matplotlib's
    for group in root.iter(f"{{{SVG}}}g"):
        # Several drawings share a page, so no group keeps its id; what is referred to is never a group.
        if mark := marks.get(group.attrib.pop("id", "")):
            _annotate(group, mark)
    size = {name: root.attrib.pop(name).removesuffix("pt") for name in ("width", "height")}
    root.attrib |= {"class": look, "role": "img", "aria-label": clean(label or title), "stroke-linejoin": "round"}
    root.attrib |= size if standalone else {}
    name = ElementTree.Element(f"{{{SVG}}}title")
    name.text = clean(title)
    root.insert(0, name)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _annotate(group: ElementTree.Element, mark: Mark) -> None:
    """A group of a line and its markers has the classes ``line`` and ``mark``."""
    if not mark.notes:
        group.set("class", mark.name)
        return
    uses, paths = list(group.iter(f"{{{SVG}}}use")), group.findall(f"{{{SVG}}}path")
    for path in paths if uses else ():
        path.set("class", "line")
    for shape, note in zip(uses or paths, mark.notes, strict=True):
        shape.set("class", mark.name)
        ElementTree.SubElement(shape, f"{{{SVG}}}title").text = clean(note)


WIDTH, HEIGHT = 440.0, 280.0
ROW = 34.0  # height of a bar's row
GLYPH = 8.0  # width of a letter
MOST_MARKERS = 20
DASHES = ("-", (0, (7, 3)), (0, (2, 3)), (0, (9, 3, 2, 3)), (0, (12, 4)))
MARKERS = ("o", "s", "^", "D", "v")
STEPS = (1, 2, 5, 10)  # between ticks, times a power of ten


@dataclass(frozen=True)
class Curve:
    name: str
    points: Sequence[Point]


def look(index: int) -> dict[str, Any]:
    """Dash patterns shift by one every round of colours, so that thirty series look different."""
    return {
        "color": SERIES[index % len(SERIES)].light,
        "linestyle": DASHES[(index + index // len(SERIES)) % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
        "clip_on": False,
    }


@drawing
def curve_chart(title: str, curves: Sequence[Curve], x_label: str, y_label: str, share: bool = False) -> str:
    """A line through the means of every curve, over a band from the smallest to the largest value; x begins at 0."""
    figure, axes, marks = _chart(HEIGHT, share, xlabel=x_label, ylabel=y_label)
    for index, curve in enumerate(curves):
        if not curve.points:
            continue
        xs, means, lows, highs, _ = zip(*curve.points, strict=True)
        if lows != highs:
            style = {"color": look(index)["color"], "alpha": 0.16, "linewidth": 0, "clip_on": False}
            axes.fill_between(xs, lows, highs, gid=f"band-{index}", **style)
            marks[f"band-{index}"] = Mark("band", (curve.name,))
        every = -(-len(xs) // MOST_MARKERS)
        marked = slice((len(xs) - 1) % every, None, every)  # the last one always
        axes.plot(xs, means, markevery=marked, gid=f"line-{index}", **look(index))
        notes = [f"{curve.name}, {x_label} {point.x:.6g}: {_value(point, share)}" for point in curve.points[marked]]
        marks[f"line-{index}"] = Mark("mark", notes)
    axes.set_xlim(0, max([point.x for curve in curves for point in curve.points], default=0) or 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    return _finished(figure, axes, title, curves, marks)


@drawing
def standalone_curves(title: str, curves: Sequence[Curve], x_label: str, y_label: str) -> str:
    """A file of its own with lines through the means of curves of shares, their legend and a title."""
    figure, axes, _ = _chart(HEIGHT, share=True, xlabel=x_label, ylabel=y_label, title=title)
    for index, curve in enumerate(curves):
        if curve.points:
            xs, means, *_ = zip(*curve.points, strict=True)
            axes.plot(xs, means, markevery=-(-len(xs) // MOST_MARKERS), label=clean(curve.name), **look(index))
    axes.legend(frameon=False)
    return svg_text(figure, title, "chart", {}, standalone=True)


@drawing
def dot_chart(
    title: str, places: Sequence[str], curves: Sequence[Curve], x_label: str, y_label: str, share: bool = False
) -> str:
    """Side by side over every place: each curve's mean with a bar to the smallest and largest; ``x`` is the place."""
    figure, axes, marks = _chart(HEIGHT, share, xlabel=x_label, ylabel=y_label)
    gap = min(0.3, 0.8 / max(1, len(curves)))
    for index, curve in enumerate(curves):
        if not curve.points:
            continue
        columns, means, lows, highs, _ = zip(*curve.points, strict=True)
        xs = np.array(columns) + gap * (index - (len(curves) - 1) / 2)
        axes.vlines(xs, lows, highs, colors=look(index)["color"])
        axes.plot(xs, means, gid=f"dots-{index}", **look(index) | {"linestyle": "none"})
        notes = [f"{curve.name}, {places[int(point.x)]}: {_value(point, share)}" for point in curve.points]
        marks[f"dots-{index}"] = Mark("mark", notes)
    axes.set_xlim(-0.5, max(1, len(places)) - 0.5)
    widest = GLYPH * max(map(len, places), default=0)
    every = max(1, -int(-widest * len(places) // (WIDTH - 70)))  # names that would touch are left out
    axes.set_xticks(range(0, len(places), every), list(map(clean, places[::every])))
    return _finished(figure, axes, title, curves, marks)


@drawing
def bar_chart(
    title: str, rows: Mapping[str, Mapping[str, float]], kinds: Sequence[str], rows_label: str, label: str
) -> str:
    """A bar a row, made of a piece for each kind: shares, not negative, on an axis that reaches 100 % at least.

    What a row lacks is not drawn, and the shares stand behind the bar.
    """
    figure, axes, marks = _chart(ROW * len(rows) + 75, xlabel=label)
    axes.grid(False)
    axes.text(-0.02, 1.0, rows_label, ha="right", va="bottom", transform=axes.transAxes)
    for number, (name, row) in enumerate(rows.items()):
        start = 0.0
        for index, kind in enumerate(kinds):
            if (value := row.get(kind, 0.0)) > 0:
                axes.barh(number, value, 0.64, start, gid=f"{number}-{index}", **_piece(index))
                marks[f"{number}-{index}"] = Mark("piece", (f"{name}, {kind}: {100 * value:.1f} %",))
                start += value
        shares = " + ".join(f"{100 * row[kind]:.0f}" for kind in kinds if kind in row)
        axes.text(1.03, number, f"{shares} %", va="center", transform=axes.get_yaxis_transform())
    axes.set_xlim(0, max([1.0, *(sum(row.values()) for row in rows.values())]))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), list(map(clean, rows)))
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    return svg_text(figure, title, "chart", marks, f"{title}: {len(rows)} bars")


@drawing
def series_key(index: int, line: bool) -> str:
    """What stands beside the name of a series in a legend."""
    figure, style = Figure((34 / 72, 14 / 72)), look(index) | ({} if line else {"linestyle": "none"})
    figure.add_artist(Line2D([0.03, 0.5, 0.97], [0.5] * 3, markevery=[1], **style))
    return svg_text(figure, "", "key", {})


@drawing
def piece_key(index: int) -> str:
    """The same for the pieces of bars."""
    figure = Figure((34 / 72, 14 / 72))
    figure.add_artist(Rectangle((0.1, 0.15), 0.8, 0.7, transform=figure.transFigure, **_piece(index)))
    return svg_text(figure, "", "key", {})


def _chart(height: float, share: bool = False, **labels: str) -> tuple[Figure, Axes, dict[str, Mark]]:
    figure = Figure((WIDTH / 72, height / 72), layout="constrained")
    axes = figure.add_subplot(**labels)
    if share:
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    return figure, axes, {}


def _finished(figure: Figure, axes: Axes, title: str, curves: Sequence[Curve], marks: Mapping[str, Mark]) -> str:
    """The drawing; its axis up the page begins and ends at a tick."""
    # matplotlib's own way, axes.autolimit_mode = "round_numbers", changes its mind about the step by rounding errors
    ticks = MaxNLocator(5, steps=STEPS).tick_values(*axes.get_ylim())
    axes.set_yticks(ticks)
    axes.set_ylim(ticks[0], ticks[-1])
    names = ", ".join(curve.name for curve in curves if curve.points)
    return svg_text(figure, title, "chart", marks, f"{title}: {names}")


def _piece(index: int) -> dict[str, Any]:
    """The first piece of a bar is full, the others are pale with a dashed edge."""
    colour = SERIES[index % len(SERIES)]
    face, dash = (colour.light, "-") if index == 0 else (colour.tint.light, (0, (4, 2)))
    return {"facecolor": face, "edgecolor": colour.light, "linestyle": dash, "linewidth": 1.5, "clip_on": False}


def _value(point: Point, share: bool) -> str:
    """The mean, and the spread if there is one."""
    mean, low, high = (percent(value) if share else f"{value:.4g}" for value in point[1:4])
    return f"{mean} ({low} to {high}, n = {point.n})" if point.n > 1 else mean
