"""Timelines as one picture: a row a rank, time to the right, a box a span, and the bubbles between them.

What a rank computes is a box with a letter for its kind and its step; what it waits for is a thin strip, so that the
row behind it, the bubble, stays in sight. Kinds differ in colour, in hatching and in letter. Pale boxes are steps
before and after those that the picture is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bllpipe.tools.analysis.charts import (
    BLUE,
    BUBBLE,
    GREEN,
    GREY,
    OLIVE,
    ORANGE,
    PINK,
    RULE,
    SOFT,
    Colour,
    Mark,
    clean,
    drawing,
    new_figure,
    save,
    svg_text,
)
from bllpipe.tools.analysis.timeline import WAITING, RankSpans, Timeline, TimelineSpan, busy, summary

WIDTH, LEFT, RIGHT = 1200.0, 104.0, 88.0
ROW, LANE, GAP = 34.0, 13.0, 7.0  # height of a row, of one of several actors in it, and between rows
ABOVE, BELOW = 28.0, 74.0  # room for the name of a run, for its times and for what it amounts to
GLYPH = 6.3  # width of a letter in a box


@dataclass(frozen=True)
class Look:
    """How a kind is drawn: its letter, its colour and its hatching."""

    letter: str
    colour: Colour
    hatch: str


LOOKS = {
    "load": Look("D", GREY, "--"),
    "forward": Look("F", BLUE, ""),
    "stats": Look("S", PINK, "--"),
    "loss": Look("L", OLIVE, "||"),
    "backward": Look("B", ORANGE, "///"),
    "update": Look("U", GREEN, "\\\\\\"),
    "absorb": Look("A", GREEN, "||"),
    "target": Look("T", BLUE, "\\\\\\"),
    "log": Look("R", GREY, "///"),
    "evaluate": Look("E", PINK, "xxx"),
    "save": Look("C", OLIVE, "xxx"),
    "receive": Look("", GREY, ""),
    "send": Look("", GREEN, ""),
    "wait": Look("", GREY, ""),
}
MEANINGS = {"load": "data", "log": "records", "save": "checkpoint", "receive": "waits: receive", "send": "waits: send"}
OTHER = Look("X", GREY, "++")  # of an engine with kinds of its own
Box = tuple[float, float, float, float]  # x, y, width, height
Marks = dict[str, Mark]


def picture(title: str, timelines: Sequence[Timeline], heading: bool = True) -> str:
    """The timelines below each other on one scale of time, with what they amount to, as SVG text: a file of its own
    under its title, or for a page that has the heading."""
    figure, marks = _draw(title, timelines, heading)
    return svg_text(figure, title, "timeline", marks, standalone=heading)


def write_png(title: str, timelines: Sequence[Timeline], out: Path) -> None:
    """The same in the light, with two pixels for each of the SVG."""
    figure, _ = _draw(title, timelines, heading=True)
    save(figure, out, format="png", dpi=144)


@drawing
def _draw(title: str, timelines: Sequence[Timeline], heading: bool) -> tuple[Figure, Marks]:
    top = 44.0 if heading else 14.0
    kinds = _legend_places(_kinds(timelines), top)
    tops = [max(y for _, _, y in kinds) + 34]
    for timeline in timelines:
        tops.append(tops[-1] + ABOVE + _height(timeline) + BELOW)
    figure = new_figure(WIDTH, tops[-1])
    marks: Marks = {"label": Mark("label")}
    sheet = _axes(figure, (0, 0, WIDTH, tops[-1]))
    sheet.axis("off")
    if heading:
        sheet.text(14, 25, clean(title), fontsize=17, fontweight="bold")
    for kind, x, y in kinds:
        _boxes(sheet, kind, [(x, y, 24.0, 14.0)])
        sheet.text(x + 12, y + 7, _look(kind).letter, ha="center", va="center", fontsize=10.5, gid="label")
        sheet.text(x + 30, y + 7, clean(MEANINGS.get(kind, kind)), va="center", fontsize=12)
    longest = max(timeline.end - timeline.start for timeline in timelines) / 1e6
    for number, timeline in enumerate(timelines):
        _draw_run(figure, sheet, timeline, tops[number], longest, f"run-{number}", marks)
    return figure, marks


def _axes(figure: Figure, box: Box) -> Axes:
    """Axes over a part of the figure, which count the units from its upper left corner."""
    width, height = (72 * size for size in figure.get_size_inches())
    x, y, w, h = box
    axes = figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))
    axes.set(xlim=(0, w), ylim=(h, 0))
    return axes


def _kinds(timelines: Sequence[Timeline]) -> list[str]:
    """The kinds that occur: the known ones in their order, then the others."""
    found = {span.kind for timeline in timelines for rank in timeline.ranks for span in rank.spans}
    return [*(kind for kind in LOOKS if kind in found), *sorted(found - LOOKS.keys())]


def _look(kind: str) -> Look:
    return LOOKS.get(kind, OTHER)


def _legend_places(kinds: Sequence[str], top: float) -> list[tuple[str, float, float]]:
    """Every kind and where its box begins, in as many lines as it takes."""
    places, x, y = [], 14.0, top
    for kind in kinds:
        room = 54 + GLYPH * len(MEANINGS.get(kind, kind))
        if x + room > WIDTH:
            x, y = 14.0, y + 22
        places.append((kind, x, y))
        x += room
    return places


def _row_height(rank: RankSpans) -> float:
    return max(ROW, LANE * len(rank.actors))


def _height(timeline: Timeline) -> float:
    return sum(_row_height(rank) + GAP for rank in timeline.ranks)


def _draw_run(
    figure: Figure, sheet: Axes, timeline: Timeline, top: float, longest: float, name: str, marks: Marks
) -> None:
    """One run from ``top`` downwards; its axes count milliseconds to the right."""
    height = _height(timeline)
    axes = _axes(figure, (LEFT, top + ABOVE, WIDTH - LEFT - RIGHT, height))
    axes.set_xlim(0, longest or 1)
    axes.set_yticks([])
    axes.grid(True, axis="x", color=RULE.light)
    axes.xaxis.set_major_locator(MaxNLocator(12, steps=(1, 2, 5, 10)))
    axes.tick_params(axis="x", length=0, labelsize=12, labelcolor=SOFT.light)
    y = 0.0
    for rank in timeline.ranks:
        _draw_rank(axes, rank, timeline, y, f"{name}-{rank.rank}", marks)
        middle = top + ABOVE + y + _row_height(rank) / 2
        sheet.text(LEFT - 10, middle, clean(f"{rank.rank}  {rank.role}"), ha="right", va="center", fontsize=12)
        sheet.text(WIDTH - RIGHT + 8, middle, f"{100 * rank.busy:.0f} % busy", va="center", fontsize=12)
        y += _row_height(rank) + GAP
    end = top + ABOVE + height
    pale = "; pale: other steps" if any(rank.others for rank in timeline.ranks) else ""
    sheet.text(14, top + 18, clean(timeline.name), fontsize=13, fontweight="bold")
    sheet.text(WIDTH - RIGHT + 12, end + 13, "ms", fontsize=12, color=SOFT.light)
    sheet.text(LEFT, end + 38, summary(timeline) + pale, fontsize=12)
    sheet.text(LEFT, end + 55, busy(timeline), fontsize=12, color=SOFT.light)


def _draw_rank(axes: Axes, rank: RankSpans, timeline: Timeline, y: float, name: str, marks: Marks) -> None:
    """Its bubble from the first span to the last, and its actors' boxes on it, one actor below the other."""
    start, width = (rank.start - timeline.start) / 1e6, (rank.end - rank.start) / 1e6
    height = _row_height(rank)
    axes.add_collection(_rectangles([(start, y, width, height)], facecolor=BUBBLE.light, edgecolor="none"))
    each = height / len(rank.actors)
    rows = {actor: (y + each * index + 1, each - 2) for index, actor in enumerate(rank.actors)}
    for pale, spans in ((True, _visible(rank, timeline)), (False, rank.spans)):
        drawn = [span for span in spans if span.actor in rows]
        for kind in dict.fromkeys(span.kind for span in drawn):
            same = [span for span in drawn if span.kind == kind]
            gid = f"{name}-{'pale' if pale else 'box'}-{len(marks)}"
            _boxes(axes, kind, [_box(span, timeline.start, *rows[span.actor]) for span in same], gid, pale)
            marks[gid] = Mark("pale" if pale else "box", [_note(span, timeline.start) for span in same])
    for span in rank.spans:
        _label(axes, span, _box(span, timeline.start, *rows[span.actor]))


def _visible(rank: RankSpans, timeline: Timeline) -> list[TimelineSpan]:
    """The spans of other steps while the picture lasts."""
    low, high = timeline.start, timeline.end
    clipped = [replace(span, start=max(low, span.start), end=min(high, span.end)) for span in rank.others]
    return [span for span in clipped if span.end > span.start]


def _box(span: TimelineSpan, origin: int, y: float, height: float) -> Box:
    return (span.start - origin) / 1e6, y, (span.end - span.start) / 1e6, height


def _note(span: TimelineSpan, origin: int) -> str:
    when = f"{(span.end - span.start) / 1e6:.3f} ms from {(span.start - origin) / 1e6:.3f} ms on"
    where = f" {span.edge}" if span.edge else ""
    return f"{span.kind}{where}, step {span.step}, {span.actor}: {when}"


def _boxes(axes: Axes, kind: str, boxes: Sequence[Box], gid: str | None = None, pale: bool = False) -> None:
    """Boxes over their whole height, or strips in their middle for what is only waited for."""
    look = _look(kind)
    if kind in WAITING:
        thin = min(5.0, boxes[0][3] / 3)
        boxes = [(x, y + (height - thin) / 2, width, thin) for x, y, width, height in boxes]
    style = {"facecolor": look.colour.tint.light, "edgecolor": look.colour.light, "linewidth": 0.7}
    drawn = _rectangles(boxes, hatch=look.hatch or None, linestyle=(0, (2, 2)) if kind in WAITING else "-", **style)
    drawn.set(gid=gid, alpha=0.3 if pale else None)
    axes.add_collection(drawn)


def _rectangles(boxes: Iterable[Box], **style: Any) -> PolyCollection:
    corners = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y, w, h in boxes]
    return PolyCollection(corners, clip_on=False, **style)


def _label(axes: Axes, span: TimelineSpan, box: Box) -> None:
    """Letter and step, the step alone, both upright, or nothing: as much as there is room for."""
    if span.kind in WAITING:
        return
    x, y, width, height = box
    room = width / axes.get_xlim()[1] * (WIDTH - LEFT - RIGHT)
    words = f"{_look(span.kind).letter}{span.step}"
    fitting = next((text for text in (words, str(span.step)) if GLYPH * len(text) + 3 <= room), None)
    upright = fitting is None and room >= 10 and GLYPH * len(words) <= height
    if fitting or upright:
        place: dict[str, Any] = {"ha": "center", "va": "center", "rotation": 90 if upright else 0, "gid": "label"}
        axes.text(x + width / 2, y + height / 2, fitting or words, fontsize=9 if height < 14 else 10.5, **place)
