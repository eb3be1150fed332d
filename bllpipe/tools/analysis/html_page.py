"""The page around the figures of a report: tables, captions, a style for light, dark and narrow screens, and the
elements of a drawing. No script, no links.

A series has a colour, a dash pattern and a marker. Colours are classes (``c0`` to ``c5``), as the page decides what
they are in the light and in the dark.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #57606a; --rule: #d5dae0; --tint: #f4f6f8;
  --c0: #0068a8; --c1: #c04a00; --c2: #00794f; --c3: #9c4386; --c4: #7d6100; --c5: #4d5560; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e6e9ed; --soft: #a3acb7; --rule: #353b43; --tint: #1d2126;
    --c0: #62b5ee; --c1: #f2935c; --c2: #35c79c; --c3: #e29ad0; --c4: #dfc14f; --c5: #b4bbc4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.8rem, 3vw, 2rem) 3rem; max-width: 80rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .4rem 0 1rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-top: .7rem; border-top: 1px solid var(--rule); }
.wide { overflow-x: auto; margin: .6rem 0; }
.wide tbody th { position: sticky; left: 0; background: var(--paper); }
.wide .timeline { display: block; width: 100%; height: auto; min-width: 56rem; }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem .28rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 600; }
th, td { white-space: nowrap; }
.long { white-space: normal; min-width: 16rem; max-width: 28rem; overflow-wrap: anywhere; }
.number { text-align: right; }
code { font: .92em ui-monospace, monospace; }
.figures { display: grid; gap: 1.6rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; max-width: 38rem; min-width: 0; }
figure h3 { font-size: 1rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
figcaption, .note { color: var(--soft); font-size: .9rem; }
.legend { list-style: none; margin: .2rem 0 .4rem; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem;
  font-size: .9rem; }
.legend li { display: flex; align-items: center; gap: .45rem; overflow-wrap: anywhere; }
.legend svg { flex: none; }
.chart { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; }
@media (max-width: 30rem) { .chart { font-size: 13.5px; } }
svg text { fill: var(--ink); }
svg .grid { stroke: var(--rule); fill: none; }
svg .axis { stroke: var(--soft); fill: none; }
svg .line { stroke: var(--series); stroke-width: 2; fill: none; stroke-linejoin: round; }
svg .band { fill: var(--series); opacity: .16; stroke: none; }
svg .mark { fill: var(--series); stroke: var(--paper); stroke-width: 1; }
svg .piece { fill: var(--series); stroke: var(--series); stroke-width: 1.5; }
svg .piece.k1 { fill-opacity: .2; stroke-dasharray: 4 2; }
.c0 { --series: var(--c0); } .c1 { --series: var(--c1); } .c2 { --series: var(--c2); }
.c3 { --series: var(--c3); } .c4 { --series: var(--c4); } .c5 { --series: var(--c5); }
@media print { h2, figure { break-inside: avoid; } }
"""
LONG = 32  # characters; a cell with more of them wraps
# Should anything in a page ever refer to the network, the browser refuses it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
Cell = str | tuple[str, str]  # text, or text with a longer one for the pointer
NUM_COLOURS = 6
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4")
# What XML cannot carry: control characters, halves of surrogate pairs, and two code points that are none.
UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def page(title: str, sections: Sequence[str]) -> str:
    """A whole HTML file; empty sections leave no trace."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    body = "\n".join([element("h1", escape(title)), *(section for section in sections if section)])
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def section(anchor: str, title: str, *parts: str) -> str:
    """A part of the page under a heading; nothing if there is nothing to show."""
    content = "\n".join(part for part in parts if part)
    return element("section", element("h2", escape(title)) + content, id=anchor) if content else ""


def figures(*drawn: str) -> str:
    """Charts side by side where there is room."""
    return element("div", "\n".join(drawn), class_="figures") if drawn else ""


def figure(title: str, chart: str, legend: str, caption: str) -> str:
    below = element("figcaption", escape(caption).replace(" %", "&nbsp;%"))  # a number is not torn from its sign
    return element("figure", element("h3", escape(title)) + legend + chart + below)


def note(text: str) -> str:
    return element("p", escape(text), class_="note") if text else ""


def bullets(items: Sequence[str]) -> str:
    return element("ul", "".join(element("li", escape(item)) for item in items), class_="note") if items else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], numbers: Sequence[str] = ()) -> str:
    """A table whose first column names the rows; the columns called in ``numbers`` are flush right."""
    looks = ["number" if head in numbers else "" for head in heads]
    top = "".join(
        element("th", escape(head), class_=look, scope="col") for head, look in zip(heads, looks, strict=True)
    )
    body = "".join(
        element("tr", "".join(_cell(cell, look, is_name) for cell, look, is_name in _placed(row, looks)))
        for row in rows
    )
    inside = element("thead", element("tr", top)) + element("tbody", body)
    return element("div", element("table", inside), class_="wide")


def _placed(row: Sequence[Cell], looks: Sequence[str]) -> list[tuple[Cell, str, bool]]:
    return [(cell, look, index == 0) for index, (cell, look) in enumerate(zip(row, looks, strict=True))]


def _cell(cell: Cell, look: str, is_name: bool) -> str:
    text, hint = cell if isinstance(cell, tuple) else (cell, "")
    scope, looks = "row" if is_name else "", f"{look} long" if len(text) > LONG else look
    # an empty element would close itself
    return element("th" if is_name else "td", escape(text) or "&nbsp;", class_=looks.strip(), title=hint, scope=scope)


def escape(text: object) -> str:
    """Text from anywhere, safe between tags and in attributes."""
    return html.escape(UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", str(text)))


def element(tag: str, content: str = "", **attributes: object) -> str:
    """``<tag a="b">content</tag>``; content is markup already, attributes are escaped; ``_`` stands for ``-``."""
    words = [tag]
    for name, value in attributes.items():
        if value not in (None, ""):
            key = name.rstrip("_").replace("_", "-")
            words.append(f'{key}="{number(value) if isinstance(value, float) else escape(value)}"')
    start = " ".join(words)
    return f"<{start}>{content}</{tag}>" if content else f"<{start}/>"


def text(words: object, x: float, y: float, **attributes: object) -> str:
    return element("text", escape(words), x=x, y=y, **attributes)


def number(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def path(points: Iterable[tuple[float, float]], closed: bool = False) -> str:
    """The ``d`` attribute of a line through the points."""
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points) + ("Z" if closed else "")


def colour(index: int) -> str:
    return f"c{index % NUM_COLOURS}"


def dash(index: int) -> str:
    """Shifts by one every round of colours, so that thirty series look different."""
    return DASHES[(index + index // NUM_COLOURS) % len(DASHES)]


def marker(index: int, x: float, y: float, note: str = "", size: float = 4.0) -> str:
    """A filled shape about ``x, y``; the note shows when a pointer rests on it."""
    title = element("title", escape(note)) if note else ""
    shape = index % 5
    kind = f"mark {colour(index)}"
    if shape == 0:
        return element("circle", title, cx=x, cy=y, r=size, class_=kind)
    if shape == 1:
        return element("rect", title, x=x - size, y=y - size, width=2 * size, height=2 * size, class_=kind)
    corners = {
        2: ((0.0, -1.2), (1.2, 1.0), (-1.2, 1.0)),
        3: ((0.0, -1.4), (1.4, 0.0), (0.0, 1.4), (-1.4, 0.0)),
        4: ((0.0, 1.2), (1.2, -1.0), (-1.2, -1.0)),
    }[shape]
    return element("path", title, d=path([(x + size * a, y + size * b) for a, b in corners], True), class_=kind)


def legend(names: Mapping[int, str], lines: bool = True) -> str:
    """What each look stands for, by the number of the series, as text that wraps on narrow screens."""
    return _keys(names, lambda index: (_stroke(index) if lines else "") + marker(index, 17.0, 7.0))


def bar_legend(kinds: Iterable[str]) -> str:
    """The same for the pieces of bars."""
    box: dict[str, Any] = {"x": 4.0, "y": 2.0, "width": 26.0, "height": 10.0}
    return _keys(dict(enumerate(kinds)), lambda index: element("rect", class_=f"piece k{index} {colour(index)}", **box))


def _stroke(index: int) -> str:
    return element("path", d="M1 7L33 7", class_=f"line {colour(index)}", stroke_dasharray=dash(index))


def _keys(names: Mapping[int, str], draw: Callable[[int], str]) -> str:
    keys = []
    for index, name in names.items():
        picture = element("svg", draw(index), viewBox="0 0 34 14", width="34", height="14", aria_hidden="true")
        keys.append(element("li", picture + element("span", escape(name))))
    return element("ul", "".join(keys), class_="legend")
