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

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

if TYPE_CHECKING:
    from bllpipe.tools.analysis.report_data import Point  # torch

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# What XML cannot carry: control characters, halves of surrogate pairs, and two code points that are none.
UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
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
    channels = ((int(colour[at : at + 2], 16), int(paper[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(TINT * one + (1 - TINT) * other):02x}" for one, other in channels)


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
STYLE: Any = {  # matplotlib names every key in the type
    **{key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")},
    **{"svg.fonttype": "none", "svg.hashsalt": "bllpipe", "text.parse_math": False, "path.simplify": False},
    **{"font.family": ["DejaVu Sans"], "font.size": 13, "axes.labelsize": 13},
    **{"text.color": INK.light, "axes.labelcolor": INK.light, "xtick.labelcolor": INK.light},
    **{"ytick.labelcolor": INK.light, "axes.edgecolor": SOFT.light, "xtick.color": SOFT.light},
    **{"axes.facecolor": "none", "figure.facecolor": PAPER.light, "savefig.facecolor": "auto"},
    **{"axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False},
    **{"axes.grid": True, "axes.grid.axis": "y", "grid.color": RULE.light, "axes.axisbelow": True},
    **{"ytick.major.size": 0},
    **{"axes.formatter.useoffset": False, "lines.scale_dashes": False, "hatch.linewidth": 0.9},
}
drawing = matplotlib.rc_context(STYLE)  # a decorator of what makes a figure


def new_figure(width: float, height: float, layout: str | None = None) -> Figure:
    """One unit of the SVG is a point of matplotlib, and a pixel of the screen unless the page scales it."""
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout=layout)  # type: ignore[arg-type]  # a Literal


def save(figure: Figure, file: io.StringIO | Path, **options: Any) -> None:
    """In our style, whatever the user's own is."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
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
    save(figure, file := io.StringIO(), format="svg", metadata=NO_METADATA)
    root = ElementTree.fromstring(file.getvalue())  # noqa: S314  # what matplotlib has just written
    for group in root.iter(f"{{{SVG}}}g"):
        if mark := marks.get(group.get("id", "")):
            _annotate(group, mark)
    _tidy(root, standalone)
    root.attrib |= {"class": look, "role": "img", "aria-label": clean(label or title)}
    name = ElementTree.Element(f"{{{SVG}}}title")
    name.text = clean(title)
    root.insert(0, name)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _annotate(group: ElementTree.Element, mark: Mark) -> None:
    """A group of a line and its markers has the classes ``line`` and ``mark``."""
    defined = {node for defs in group.iter(f"{{{SVG}}}defs") for node in defs.iter()}
    uses, paths = ([node for node in group.iter(f"{{{SVG}}}{tag}") if node not in defined] for tag in ("use", "path"))
    if not mark.notes:
        group.set("class", mark.name)
        return
    for path in paths if uses else ():
        path.set("class", "line")
    for shape, note in zip(uses or paths, mark.notes, strict=True):
        shape.set("class", mark.name)
        ElementTree.SubElement(shape, f"{{{SVG}}}title").text = clean(note)


def _tidy(root: ElementTree.Element, standalone: bool) -> None:
    """Ids that nothing refers to are taken out, as several drawings share a page; so is matplotlib's rule for ``*``."""
    used = {name for node in root.iter() for value in node.attrib.values() for name in re.findall(r"#([\w-]+)", value)}
    for node in root.iter():
        if node.get("id", "") not in used:
            node.attrib.pop("id", None)
    for defs in root.findall(f"{{{SVG}}}defs"):
        for style in defs.findall(f"{{{SVG}}}style"):
            style.text = RULES
            if not standalone:
                defs.remove(style)
    root.set("stroke-linejoin", "round")
    for name in ("width", "height"):
        size = root.attrib.pop(name).removesuffix("pt")
        if standalone:
            root.set(name, size)


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
