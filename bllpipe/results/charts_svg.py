"""Elements of a drawing as text, and the looks of series: a colour, a dash pattern and a marker each.

Colours are classes (``c0`` to ``c5``), as the page decides what they are in the light and in the dark.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

NUM_COLOURS = 6
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4")
# What XML cannot carry: control characters, halves of surrogate pairs, and two code points that are none.
UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


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
