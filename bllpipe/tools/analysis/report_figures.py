"""The parts of a report's page: sections, tables, and figures with captions: curves and bars of the groups, what every
rank waited for, and timelines of traced runs on one scale of time.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bllpipe.tools.analysis.charts import RULES, Curve, bar_chart, clean, curve_chart, dot_chart, piece_key, series_key
from bllpipe.tools.analysis.report_data import LAST, Group, Point, ReportRun, finite, mean_text, spread
from bllpipe.tools.analysis.timeline import Timeline
from bllpipe.tools.analysis.timeline_picture import picture

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


MOST_POINTS = 300  # of a curve
SPREAD = "The line is the mean over the runs of a group, the band reaches from the smallest to the largest value."
WHOLE = "network"  # one that is not cut
NUMBERS = ("seconds", "of its waiting")
WAITING_NOTE = (
    "The edge at which a rank waited longest in training: alpha is what a block hands to the next one, target and "
    "stats are what goes to and from the feedback rank. Means over the runs of a group."
)
MOST_STEPS = 4  # of a run; more of them make small boxes
TIMELINE_NOTE = (
    "A box is what a rank computes, with a letter for its kind and the number of its step; a thin strip is a wait. "
    "Only a few of the traced steps are shown; bllpipe timeline draws all of them."
)


def learning(groups: Sequence[Group]) -> list[Part]:
    """Test accuracy over epochs and training loss over steps, of the last block."""
    tests = [Curve(group.label, _by_epoch(group)) for group in groups]
    losses = [Curve(group.label, _points(group, "train", LAST, "loss")) for group in groups]
    drawn = []
    if _has_points(tests):
        title = "Test accuracy of the last block"
        chart = curve_chart(title, tests, "epochs", "test accuracy (%)", share=True)
        caption = f"Share of the test images that the last block's head gets right, after each test. {SPREAD} "
        drawn.append(Chart(title, chart, _legend(tests), caption + _ends(tests, "{:.2f} %", 100)))
    if _has_points(losses):
        title = "Training loss of the last block"
        chart = curve_chart(title, losses, "training steps", "loss (nats per image)")
        caption = f"Mean loss over the images since the point before. {SPREAD} "
        drawn.append(Chart(title, chart, _legend(losses), caption + _ends(losses, "{:.3g}")))
    return [Charts(drawn) if drawn else Note("No run has a line of a test or of training in metrics.jsonl yet.")]


def accuracy_by_block(groups: Sequence[Group]) -> list[Part]:
    """Dots by block, and the same figures as a table."""
    places = _places(groups)
    dots = [Curve(group.label, _dots(group, places)) for group in groups]
    if not _has_points(dots):
        return [Note("No run is finished, so the accuracy of the blocks at the end is not known yet.")]
    title = "Test accuracy of every block's own head"
    chart = dot_chart(title, places, dots, "the block whose head answers", "test accuracy (%)", share=True)
    caption = "The dot is the mean over the finished runs of a group, the bar reaches from the smallest to the largest."
    rows = [[group.label, *(_block_text(group, place) for place in places)] for group in groups]
    drawn = Chart(title, chart, _legend(dots, lines=False), caption)
    return [Charts([drawn]), Table(("method", *places), rows, places)]


def alignment(groups: Sequence[Group]) -> list[Part]:
    """A figure for every group that recorded it; nothing if none did."""
    drawn = []
    for group in groups:
        blocks = range(group.num_blocks)
        curves = [Curve(f"block {k}", _points(group, "train", k, "alignment")) for k in blocks]
        if _has_points(curves):
            title = f"Alignment: {group.label}"
            chart = curve_chart(title, curves, "training steps", "cosine of alpha and beta")
            caption = (
                "1: a block's activations point where its target points; 0: they have nothing in common. "
                f"{SPREAD} {_ends(curves, '{:.2f}')}"
            )
            drawn.append(Chart(title, chart, _legend(curves), caption))
    return [Charts(drawn)] if drawn else []


def time_use(groups: Sequence[Group]) -> list[Part]:
    """A figure for every group with a finished run: a bar for each rank."""
    kinds = ("busy", "waiting")
    drawn = []
    for group in groups:
        rows = _time_rows(group.runs)
        if rows:
            title = f"Time of every rank: {group.label}"
            chart = bar_chart(title, rows, kinds, "rank, role", "share of the training time (%)")
            drawn.append(Chart(title, chart, piece_legend(kinds), _time_caption(rows)))
    return [Charts(drawn) if drawn else Note("No run is finished, so busy and waiting times are not known yet.")]


def _by_epoch(group: Group) -> list[Point]:
    per_epoch = next((length for run in group.runs if (length := run.steps_per_epoch())), None)
    points = group.curve("evaluate", LAST, "accuracy").values() if per_epoch else ()
    return [Point(p.x / per_epoch, p.mean, p.low, p.high, p.n) for p in points if per_epoch]


def _points(group: Group, phase: str, block: int, name: str) -> list[Point]:
    """A curve of so few points that a page stays small: every second, third, ... and the last one."""
    points = list(group.curve(phase, block, name).values())
    every = max(1, -(-len(points) // MOST_POINTS))
    return points[::-1][::every][::-1]


def _places(groups: Sequence[Group]) -> list[str]:
    """The blocks of the deepest cut, and a place of its own for networks that are not cut."""
    sizes = {group.num_blocks for group in groups}
    return [f"block {k}" for k in range(max(sizes)) if max(sizes) > 1] + [WHOLE] * (1 in sizes)


def _dots(group: Group, places: Sequence[str]) -> list[Point]:
    points = [spread(x, _accuracies(group, place)) for x, place in enumerate(places)]
    return [point for point in points if point is not None]


def _accuracies(group: Group, place: str) -> list[float]:
    """The accuracies of one block in all runs that have it."""
    found = []
    for run in group.runs:
        accuracy = run.block_accuracy
        names = [f"block {k}" for k in range(len(accuracy))] if len(accuracy) != 1 else [WHOLE]
        found += [value for name, value in zip(names, accuracy, strict=True) if name == place and value is not None]
    return found


def _block_text(group: Group, place: str) -> str:
    known = _accuracies(group, place)
    return mean_text(known) if known else "\N{EN DASH}"


def _time_rows(runs: Sequence[ReportRun]) -> dict[str, dict[str, float]]:
    """Busy and waiting shares by rank, means over the runs."""
    shares: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for rank, (role, busy, waiting) in enumerate(_ranks(run)):
            row = shares.setdefault(f"{rank} {role}", {"busy": [], "waiting": []})
            row["busy"].append(busy)
            row["waiting"].append(waiting)
    return {name: {kind: sum(values) / len(values) for kind, values in row.items()} for name, row in shares.items()}


def _ranks(run: ReportRun) -> list[tuple[str, float, float]]:
    """Role, busy share and waiting share of every rank."""
    roles, busy, waiting = (run.summary.get(key) for key in ("roles", "busy", "waiting"))
    training = _training_seconds(run)
    if not (isinstance(roles, list) and isinstance(busy, list) and isinstance(waiting, list) and training):
        return []
    shares = [finite(share) or 0.0 for share in busy]
    return [
        (str(role), share, min(_mean_waiting(edges) / training, max(0.0, 1 - share)))
        for role, share, edges in zip(roles, shares, waiting, strict=False)
    ]


def _mean_waiting(edges: object) -> float:
    """Seconds that a rank waited; lanes wait at the same time as each other, so of them the mean counts."""
    if not isinstance(edges, dict):
        return 0.0
    num_lanes = max(1, sum(str(edge).startswith("stats") for edge in edges))
    return sum(finite(seconds) or 0.0 for seconds in edges.values()) / num_lanes


def _training_seconds(run: ReportRun) -> float | None:
    """Without tests and checkpoints, as ``busy`` is meant: images trained on over images a second. A little too short,
    as the first steps, which fill the pipeline, are slower."""
    steps, batch = finite(run.summary.get("steps")), finite(run.config.get("data.batch_size"))
    rate, seconds = finite(run.summary.get("images_per_second")), finite(run.summary.get("seconds"))
    if not (steps and batch and rate and seconds):
        return seconds
    return min(seconds, steps * batch / rate)  # a run that went on from a checkpoint did not train all steps


def _time_caption(rows: dict[str, dict[str, float]]) -> str:
    busiest = max(rows, key=lambda name: rows[name]["busy"])
    return (
        "Busy: computing; waiting: for messages or for room to send them (for the feedback rank the mean of its "
        "lanes); the rest is the turns of others and the loop itself. Means over the runs. "
        f"The busiest rank is {busiest} with {100 * rows[busiest]['busy']:.0f} %."
    )


def _has_points(curves: Sequence[Curve]) -> bool:
    return any(curve.points for curve in curves)


def _legend(curves: Sequence[Curve], lines: bool = True) -> list[tuple[str, str]]:
    """Without curves that have no points; the others keep the look that they have in every chart."""
    return series_legend({index: curve.name for index, curve in enumerate(curves) if curve.points}, lines)


def _ends(curves: Sequence[Curve], pattern: str, scale: float = 1) -> str:
    """Where every curve ends: what a reader would try to read off the right edge."""
    ends = [f"{curve.name} {pattern.format(scale * curve.points[-1].mean)}" for curve in curves if curve.points]
    return f"At the end: {'; '.join(ends)}."


def longest_waits(groups: Sequence[Group]) -> list[Part]:
    """A row for every rank that waited; nothing if no run is finished."""
    rows = [row for group in groups for row in _rows(group)]
    heads = ("method", "rank", "waited longest for", *NUMBERS)
    return [Table(heads, rows, NUMBERS), Note(WAITING_NOTE)] if rows else []


def _rows(group: Group) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for rank, role in enumerate(_roles(group)):
        waits = _waits(group.runs, rank)
        if waits and (total := sum(waits.values())) > 0:
            edge = max(waits, key=lambda name: waits[name])
            share = f"{100 * waits[edge] / total:.0f} %"
            rows.append([group.label, f"{rank} {role}", edge, f"{waits[edge]:.1f}", share])
    return rows


def _roles(group: Group) -> list[object]:
    known = [run.summary["roles"] for run in group.runs if isinstance(run.summary.get("roles"), list)]
    return list(known[0]) if known else []


def _waits(runs: Sequence[ReportRun], rank: int) -> dict[str, float]:
    """Seconds by edge, means over the runs that know them."""
    found: dict[str, list[float]] = {}
    for run in runs:
        waiting = run.summary.get("waiting")
        edges = waiting[rank] if isinstance(waiting, list) and rank < len(waiting) else None
        for edge, seconds in edges.items() if isinstance(edges, dict) else ():
            found.setdefault(str(edge), []).append(finite(seconds) or 0.0)
    return {edge: statistics.fmean(values) for edge, values in found.items()}


def excerpts(runs: Sequence[ReportRun]) -> list[Part]:
    """One picture; nothing if no run has spans."""
    traced = [excerpt(run.timeline) for run in runs if run.timeline is not None]
    if not traced:
        return []
    title = "Timeline of " + ", ".join(timeline.name for timeline in traced)
    return [WideDrawing(picture(title, traced, heading=False)), Note(TIMELINE_NOTE)]


def excerpt(timeline: Timeline) -> Timeline:
    """The steps in the middle, where every rank is at work."""
    steps = timeline.steps
    first = max(0, (len(steps) - MOST_STEPS) // 2)
    return timeline.cut(steps[first], steps[min(first + MOST_STEPS, len(steps)) - 1] + 1)
