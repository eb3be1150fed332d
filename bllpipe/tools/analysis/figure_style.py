"""How the figures of a report and of a timeline look, and how a matplotlib figure becomes SVG text.

The drawing has the colours of the light scheme; rules of CSS replace each by that of the dark scheme, so that one file
serves both, and programs that know no CSS draw the light one. Texts stay text.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

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
