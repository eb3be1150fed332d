"""Timelines as one SVG: a row a rank, time to the right, a box a span, and the bubbles between them.

What a rank computes is a box with a letter for its kind and its step; what it waits for is a thin strip, so that the
row behind it, the bubble, stays in sight. Kinds differ in colour, in pattern and in letter. Pale boxes are steps before
and behind those that the picture is about. No script, no library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bllpipe.tools.analysis.html_page import element, escape, path, text
from bllpipe.tools.analysis.svg_charts import Axis, snug_axis
from bllpipe.tools.analysis.timeline import WAITING, RankSpans, Timeline, TimelineSpan, busy, summary

WIDTH, LEFT, RIGHT = 1200.0, 104.0, 88.0
ROW, LANE, GAP = 34.0, 13.0, 7.0  # height of a row, of one of several actors in it, and between rows, px
GLYPH = 6.3  # width of a letter in a box, px
TILE = 6  # side of a pattern, px


@dataclass(frozen=True)
class Look:
    """How a kind is drawn: its letter, its colours in the light and in the dark, and the lines of its pattern."""

    letter: str
    light: str
    dark: str
    pattern: str


BLUE, ORANGE, GREEN = ("#0068a8", "#62b5ee"), ("#c04a00", "#f2935c"), ("#00794f", "#35c79c")
PINK, OLIVE, GREY = ("#9c4386", "#e29ad0"), ("#7d6100", "#dfc14f"), ("#4d5560", "#b4bbc4")
RISING, FALLING, UPRIGHT, LEVEL = "M0 6L6 0M-1 1L1 -1M5 7L7 5", "M0 0L6 6M-1 5L1 7M5 -1L7 1", "M3 0V6", "M0 3H6"
LOOKS = {
    "load": Look("D", *GREY, LEVEL),
    "forward": Look("F", *BLUE, ""),
    "stats": Look("S", *PINK, LEVEL),
    "loss": Look("L", *OLIVE, UPRIGHT),
    "backward": Look("B", *ORANGE, RISING),
    "update": Look("U", *GREEN, FALLING),
    "absorb": Look("A", *GREEN, UPRIGHT),
    "target": Look("T", *BLUE, FALLING),
    "log": Look("R", *GREY, RISING),
    "evaluate": Look("E", *PINK, RISING + FALLING),
    "save": Look("C", *OLIVE, RISING + FALLING),
    "receive": Look("", *GREY, ""),
    "send": Look("", *GREEN, ""),
    "wait": Look("", *GREY, ""),
}
MEANINGS = {"load": "data", "log": "records", "save": "checkpoint", "receive": "waits: receive", "send": "waits: send"}
OTHER = Look("X", *GREY, UPRIGHT + LEVEL)  # of an engine with kinds of its own
STYLE = """
.timeline { font: 12px system-ui, sans-serif; }
.timeline text { fill: #1b1f24; } .timeline .soft { fill: #57606a; } .timeline .paper { fill: #fff; }
.timeline .bubble { fill: #e9edf1; } .timeline .grid { stroke: #d5dae0; } .timeline .axis { stroke: #57606a; }
.timeline .head { font-size: 17px; font-weight: 600; } .timeline .name { font-size: 13px; font-weight: 600; }
.timeline .label { font-size: 10.5px; text-anchor: middle; pointer-events: none; paint-order: stroke;
  stroke: #fff; stroke-width: 2.5px; stroke-linejoin: round; }
.timeline .small { font-size: 9px; } .timeline .box { stroke-width: .7; } .timeline path { fill: none; }
"""
DARK = """
.timeline text { fill: #e6e9ed; } .timeline .soft { fill: #a3acb7; } .timeline .paper { fill: #14171b; }
.timeline .bubble { fill: #23282f; } .timeline .grid { stroke: #353b43; } .timeline .axis { stroke: #a3acb7; }
.timeline .label { stroke: #14171b; }
"""


@dataclass(frozen=True)
class Scale:
    """From nanoseconds since the first span of a run to places on the paper, the same for all runs."""

    axis: Axis

    def place(self, nanoseconds: int) -> float:
        return self.axis.place(nanoseconds / 1e6, LEFT, WIDTH - RIGHT)


def picture(title: str, timelines: Sequence[Timeline], heading: bool = True) -> str:
    """The timelines below each other on one scale of time, with what they amount to, under the title."""
    longest = max(timeline.end - timeline.start for timeline in timelines)
    scale = Scale(snug_axis("ms", [0.0, longest / 1e6], count=12))
    kinds = _kinds(timelines)
    legend, top = _legend(kinds, 44.0 if heading else 14.0)
    parts, top = [text(title, 14.0, 25.0, class_="head") if heading else "", legend], top + 12
    for timeline in timelines:
        drawn, top = _run(timeline, scale, top)
        parts.append(drawn)
    return _paper(title, kinds, top, parts)


def _paper(title: str, kinds: Sequence[str], height: float, parts: Sequence[str]) -> str:
    light, dark = STYLE + _colours(kinds, dark=False), DARK + _colours(kinds, dark=True)
    style = element("style", f"{light}@media (prefers-color-scheme: dark) {{{dark}}}")
    patterns = element("defs", "".join(map(_pattern, kinds)))
    back = element("rect", class_="paper", width=WIDTH, height=height)
    content = element("title", escape(title)) + style + patterns + back + "\n".join(parts)
    size = {"viewBox": f"0 0 {WIDTH:.0f} {height:.0f}", "width": f"{WIDTH:.0f}", "height": f"{height:.0f}"}
    looks = {"class_": "timeline", "role": "img", "aria_label": title, "xmlns": "http://www.w3.org/2000/svg"}
    return element("svg", content, **size, **looks) + "\n"


def _kinds(timelines: Sequence[Timeline]) -> list[str]:
    """The kinds that occur: the known ones in their order, then the others."""
    found = {span.kind for timeline in timelines for rank in timeline.ranks for span in rank.spans}
    return [*(kind for kind in LOOKS if kind in found), *sorted(found - LOOKS.keys())]


def _colours(kinds: Sequence[str], dark: bool) -> str:
    """Plain rules, without variables, as not every converter knows those."""
    rules = []
    for kind in kinds:
        look = LOOKS.get(kind, OTHER)
        colour = look.dark if dark else look.light
        name = _name(kind)
        rules.append(f".timeline .{name} {{ stroke: {colour}; }} .timeline .{name}-fill {{ fill: {colour}; }}")
    return "\n".join(rules) + "\n"


def _name(kind: str) -> str:
    """A kind as a class and an id; kinds of other engines may be any text."""
    return "kind-" + "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in kind)


def _pattern(kind: str) -> str:
    name, look = _name(kind), LOOKS.get(kind, OTHER)
    tile = element("rect", class_="paper", width=TILE, height=TILE)
    tile += element("rect", class_=f"{name}-fill", fill_opacity="0.42", width=TILE, height=TILE)
    tile += (
        element("path", d=look.pattern, class_=name, stroke_width="0.9", stroke_opacity="0.8") if look.pattern else ""
    )
    return element("pattern", tile, id=name, width=TILE, height=TILE, patternUnits="userSpaceOnUse")


def _legend(kinds: Sequence[str], top: float) -> tuple[str, float]:
    """What each look stands for, in as many lines as it takes, and where they end."""
    parts, x, y = [], 14.0, top
    for kind in kinds:
        name = MEANINGS.get(kind, kind)
        room = 54 + GLYPH * len(name)
        if x + room > WIDTH:
            x, y = 14.0, y + 22
        parts.append(_box(kind, x, 24.0, y, 14.0, "") + _words(_letter(kind), x + 12, y + 7, small=False))
        parts.append(text(name, x + 30, y + 11))
        x += room
    return "".join(parts), y + 22


def _letter(kind: str) -> str:
    return LOOKS.get(kind, OTHER).letter


def _run(timeline: Timeline, scale: Scale, top: float) -> tuple[str, float]:
    """One run from ``top`` downwards, and where it ends."""
    parts = [text(timeline.name, 14.0, top + 18, class_="name")]
    rows, y = [], top + 28
    for rank in timeline.ranks:
        height = max(ROW, LANE * len(rank.actors))
        rows.append(_row(rank, timeline, scale, y, height))
        y += height + GAP
    parts += [_axis(scale, top + 28, y), *rows]
    pale = "; pale: other steps" if any(rank.others for rank in timeline.ranks) else ""
    parts.append(text(summary(timeline) + pale, LEFT, y + 50))
    parts.append(text(busy(timeline), LEFT, y + 67, class_="soft"))
    return "".join(parts), y + 84


def _axis(scale: Scale, top: float, bottom: float) -> str:
    """Grid lines behind the rows, and times below them."""
    parts = []
    for tick, words in scale.axis.written():
        x = scale.axis.place(tick, LEFT, WIDTH - RIGHT)
        parts.append(element("path", d=path([(x, top), (x, bottom)]), class_="grid"))
        parts.append(text(words, x, bottom + 14, class_="soft", text_anchor="middle"))
    parts.append(element("path", d=path([(LEFT, bottom), (WIDTH - RIGHT, bottom)]), class_="axis"))
    parts.append(text("ms", WIDTH - RIGHT + 12, bottom + 14, class_="soft"))
    return "".join(parts)


def _row(rank: RankSpans, timeline: Timeline, scale: Scale, y: float, height: float) -> str:
    """A rank: its bubble from the first span to the last, and its actors' boxes on it, one actor below the other."""
    start, end = (scale.place(time - timeline.start) for time in (rank.start, rank.end))
    parts = [text(f"{rank.rank}  {rank.role}", LEFT - 10, y + height / 2 + 4, text_anchor="end")]
    parts.append(element("rect", class_="bubble", x=start, y=y, width=end - start, height=height))
    each = height / len(rank.actors)
    for index, actor in enumerate(rank.actors):
        place = scale, y + each * index + 1, each - 2
        pale = [_span(span, timeline.start, *place) for span in _visible(rank, timeline) if span.actor == actor]
        parts.append(element("g", "".join(pale), opacity="0.3") if pale else "")
        mine = [span for span in rank.spans if span.actor == actor]
        parts += [_span(span, timeline.start, *place) + _label(span, timeline.start, *place) for span in mine]
    parts.append(text(f"{100 * rank.busy:.0f} % busy", WIDTH - RIGHT + 8, y + height / 2 + 4))
    return "".join(parts)


def _visible(rank: RankSpans, timeline: Timeline) -> list[TimelineSpan]:
    """The spans of other steps while the picture lasts."""
    low, high = timeline.start, timeline.end
    clipped = [replace(span, start=max(low, span.start), end=min(high, span.end)) for span in rank.others]
    return [span for span in clipped if span.end > span.start]


def _span(span: TimelineSpan, origin: int, scale: Scale, y: float, height: float) -> str:
    start, end = scale.place(span.start - origin), scale.place(span.end - origin)
    when = f"{(span.end - span.start) / 1e6:.3f} ms from {(span.start - origin) / 1e6:.3f} ms on"
    where = f" {span.edge}" if span.edge else ""
    note = f"{span.kind}{where}, step {span.step}, {span.actor}: {when}"
    return _box(span.kind, start, max(0.3, end - start), y, height, note)


def _label(span: TimelineSpan, origin: int, scale: Scale, y: float, height: float) -> str:
    """Letter and step, the step alone, both upright, or nothing: as much as there is room for."""
    if span.kind in WAITING:
        return ""
    start, end = scale.place(span.start - origin), scale.place(span.end - origin)
    x, middle, letter = (start + end) / 2, y + height / 2, _letter(span.kind)
    for words in (f"{letter}{span.step}", str(span.step)):
        if GLYPH * len(words) + 3 <= end - start:
            return _words(words, x, middle, small=height < 14)
    upright = f"{letter}{span.step}"
    if end - start >= 10 and GLYPH * len(upright) <= height:
        return text(upright, x + 4, middle, class_="label", transform=f"rotate(-90 {x + 4:.1f} {middle:.1f})")
    return ""


def _box(kind: str, x: float, width: float, y: float, height: float, note: str) -> str:
    """A box over the whole height, or a strip in the middle for what is only waited for."""
    title, name = element("title", escape(note)) if note else "", _name(kind)
    if kind in WAITING:
        thin = min(5.0, height / 3)
        place = {"x": x, "y": y + (height - thin) / 2, "width": width, "height": thin}
        return element("rect", title, class_=f"box {name}", fill=f"url(#{name})", stroke_dasharray="2 2", **place)
    place = {"x": x, "y": y, "width": width, "height": height}
    return element("rect", title, class_=f"box {name}", fill=f"url(#{name})", **place)


def _words(words: str, x: float, middle: float, small: bool) -> str:
    return text(words, x, middle + (3 if small else 4), class_="label small" if small else "label")
