"""Timelines as one picture: a row a rank, time to the right, a box a span, and the bubbles between them.

What a rank computes is a box with a letter for its kind and its step; what it waits for is a thin strip, so that the
row behind it, the bubble, stays in sight. Kinds differ in colour, in hatching and in letter. Pale boxes are steps
before and after those that the picture is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.axes import Axes
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
    STEPS,
    Colour,
    Mark,
    clean,
    drawing,
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
    found = {span.kind for timeline in timelines for rank in timeline.ranks for span in rank.spans}
    kinds = [*(kind for kind in LOOKS if kind in found), *sorted(found - LOOKS.keys())]
    heights = [sum(_row_height(rank) + GAP for rank in timeline.ranks) for timeline in timelines]
    longest = max(timeline.end - timeline.start for timeline in timelines) / 1e6
    room = 54 + GLYPH * max(len(MEANINGS.get(kind, kind)) for kind in kinds)
    columns, top = max(1, int((WIDTH - 14) // room)), 44.0 if heading else 14.0
    y = top + 22 * ((len(kinds) - 1) // columns) + 34
    total = y + sum(heights) + len(timelines) * (ABOVE + BELOW)
    figure, marks = Figure((WIDTH / 72, total / 72)), {"label": Mark("label")}
    sheet = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(total, 0))
    sheet.axis("off")
    if heading:
        sheet.text(14, 25, clean(title), fontsize=17, fontweight="bold")
    for index, kind in enumerate(kinds):
        left, middle = 14 + room * (index % columns), top + 22 * (index // columns) + 7
        _bars(sheet, kind, [(left, 24)], middle - 7, 14)
        sheet.text(left + 12, middle, _look(kind).letter, ha="center", va="center", fontsize=10.5, gid="label")
        sheet.text(left + 30, middle, clean(MEANINGS.get(kind, kind)), va="center", fontsize=12)
    for number, (timeline, height) in enumerate(zip(timelines, heights, strict=True)):
        place = (LEFT / WIDTH, 1 - (y + ABOVE + height) / total, 1 - (LEFT + RIGHT) / WIDTH, height / total)
        axes = figure.add_axes(place, xlim=(0, longest or 1), ylim=(height, 0))
        _draw_run(axes, timeline, f"run-{number}", marks)
        y += ABOVE + height + BELOW
    return figure, marks


def _look(kind: str) -> Look:
    return LOOKS.get(kind, OTHER)


def _row_height(rank: RankSpans) -> float:
    return max(ROW, LANE * len(rank.actors))


def _draw_run(axes: Axes, timeline: Timeline, name: str, marks: Marks) -> None:
    """One run: its axes count milliseconds to the right."""
    axes.set_title(clean(timeline.name), loc="left", fontsize=13, fontweight="bold")
    axes.grid(True, axis="x", color=RULE.light)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(12, steps=STEPS))
    axes.xaxis.set_major_formatter("{x:g} ms")
    axes.tick_params(length=0, labelsize=12)
    pale = "; pale: other steps" if any(rank.others for rank in timeline.ranks) else ""
    words = f"{summary(timeline)}{pale}\n{busy(timeline)}"
    axes.set_xlabel(words, loc="left", fontsize=12, color=SOFT.light, labelpad=8, linespacing=1.4)
    y, middles = 0.0, []
    for rank in timeline.ranks:
        _draw_rank(axes, rank, timeline, y, f"{name}-{rank.rank}", marks)
        middles.append(y + _row_height(rank) / 2)
        share = f"{100 * rank.busy:.0f} % busy"
        axes.text(1.008, middles[-1], share, va="center", fontsize=12, transform=axes.get_yaxis_transform())
        y += _row_height(rank) + GAP
    axes.set_yticks(middles, [clean(f"{rank.rank}  {rank.role}") for rank in timeline.ranks])


def _draw_rank(axes: Axes, rank: RankSpans, timeline: Timeline, y: float, name: str, marks: Marks) -> None:
    """Its bubble from the first span to the last, and its actors' boxes on it, one actor below the other."""
    low, high, height = timeline.start, timeline.end, _row_height(rank)
    bubble = ((rank.start - low) / 1e6, (rank.end - rank.start) / 1e6)
    axes.broken_barh([bubble], (y, height), facecolor=BUBBLE.light, edgecolor="none", clip_on=False)
    each = height / len(rank.actors)
    rows = {actor: y + each * index + 1 for index, actor in enumerate(rank.actors)}
    clipped = [replace(span, start=max(low, span.start), end=min(high, span.end)) for span in rank.others]
    for look, spans in (("pale", [span for span in clipped if span.end > span.start]), ("box", rank.spans)):
        groups: dict[tuple[str, str], list[TimelineSpan]] = {}
        for span in spans:
            if span.actor in rows:
                groups.setdefault((span.kind, span.actor), []).append(span)
        for (kind, actor), same in groups.items():
            gid = f"{name}-{look}-{len(marks)}"
            _bars(axes, kind, [_times(span, low) for span in same], rows[actor], each - 2, gid, look == "pale")
            marks[gid] = Mark(look, [_note(span, low) for span in same])
    for span in rank.spans:
        if span.kind not in WAITING:
            _label(axes, span, low, rows[span.actor], each - 2)


def _times(span: TimelineSpan, origin: int) -> tuple[float, float]:
    """Start and length in milliseconds."""
    return (span.start - origin) / 1e6, (span.end - span.start) / 1e6


def _note(span: TimelineSpan, origin: int) -> str:
    start, length = _times(span, origin)
    where = f" {span.edge}" if span.edge else ""
    return f"{span.kind}{where}, step {span.step}, {span.actor}: {length:.3f} ms from {start:.3f} ms on"


def _bars(
    axes: Axes,
    kind: str,
    times: Sequence[tuple[float, float]],
    y: float,
    height: float,
    gid: str | None = None,
    pale: bool = False,
) -> None:
    """Boxes over the whole height, or strips in its middle for what is only waited for."""
    look, waits = _look(kind), kind in WAITING
    thin = min(5.0, height / 3) if waits else height
    axes.broken_barh(
        times,
        (y + (height - thin) / 2, thin),
        facecolor=look.colour.tint.light,
        edgecolor=look.colour.light,
        linewidth=0.7,
        linestyle=(0, (2, 2)) if waits else "-",
        hatch=look.hatch or None,
        alpha=0.3 if pale else None,
        gid=gid,
        clip_on=False,
    )


def _label(axes: Axes, span: TimelineSpan, origin: int, y: float, height: float) -> None:
    """Letter and step, the step alone, both upright, or nothing: as much as there is room for."""
    start, length = _times(span, origin)
    room = length / axes.get_xlim()[1] * (WIDTH - LEFT - RIGHT)
    words = f"{_look(span.kind).letter}{span.step}"
    fitting = next((text for text in (words, str(span.step)) if GLYPH * len(text) + 3 <= room), None)
    upright = fitting is None and room >= 10 and GLYPH * len(words) <= height
    if fitting or upright:
        x, rotation, size = start + length / 2, 90 if upright else 0, 9 if height < 14 else 10.5
        text, middle = fitting or words, y + height / 2
        axes.text(x, middle, text, ha="center", va="center", rotation=rotation, fontsize=size, gid="label")
