"""The page around the figures of a report: what it is made of, and the template that lays it out.

The template, report.html.jinja, has a style for light, dark and narrow screens, no script and no links.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bllpipe.tools.analysis.charts import piece_key, series_key
from bllpipe.tools.analysis.figure_style import RULES, clean

LONG = 32  # characters; a cell with more of them wraps
Cell = str | tuple[str, str]  # text, or text with a longer one for the pointer


@dataclass(frozen=True)
class Table:
    """The first column names the rows; the columns called in ``numbers`` are flush right."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: Sequence[str] = ()


@dataclass(frozen=True)
class Note:
    text: str


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Chart:
    """A chart between its title and its caption; every key of the legend is a drawing with a name."""

    title: str
    svg: str
    legend: Sequence[tuple[str, str]]
    caption: str


@dataclass(frozen=True)
class Charts:
    """Side by side where there is room."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class WideDrawing:
    """One that scrolls by itself on a narrow screen."""

    svg: str


Part = Table | Note | Bullets | Charts | WideDrawing


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading; one without parts leaves no trace."""

    anchor: str
    title: str
    parts: Sequence[Part] = field(default=())


def series_legend(names: Mapping[int, str], lines: bool = True) -> list[tuple[str, str]]:
    """What each look stands for, by the number of the series."""
    return [(series_key(index, lines), name) for index, name in names.items()]


def piece_legend(kinds: Iterable[str]) -> list[tuple[str, str]]:
    """The same for the pieces of bars."""
    return [(piece_key(index), kind) for index, kind in enumerate(kinds)]


def render_page(title: str, sections: Sequence[Section]) -> str:
    """A whole HTML file."""
    environment = Environment(
        loader=PackageLoader("bllpipe.tools.analysis", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # of all text, but not of drawings, which are clean
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
    )
    template = environment.get_template("report.html.jinja")
    return template.render(
        title=title, sections=[section for section in sections if section.parts], figure_rules=RULES, long=LONG
    )
