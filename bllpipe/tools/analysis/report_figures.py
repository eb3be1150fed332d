"""The parts of a report's page: curves and bars of the groups with captions, what every rank waited for, and timelines
of traced runs on one scale of time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bllpipe.tools.analysis.charts import RULES, Curve, bar_chart, clean, curve_chart, dot_chart, piece_key, series_key
from bllpipe.tools.analysis.report_data import LAST, Group, Point, ReportRun, deviation, finite, spread
from bllpipe.tools.analysis.timeline import Timeline
from bllpipe.tools.analysis.timeline_picture import picture
from bllpipe.utils.console import percent

TEMPLATES = Environment(
    loader=PackageLoader("bllpipe.tools.analysis", ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    # of all text, but not of drawings, which are clean
    finalize=lambda value: value if isinstance(value, Markup) else clean(value),
)
# The macros of the parts: table, chart, side_by_side, wide_drawing, note and bullets. Each returns HTML as Markup.
PARTS: Any = TEMPLATES.get_template("report_parts.html.jinja").module
UNKNOWN = "\N{EN DASH}"


def render_page(title: str, sections: Sequence[tuple[str, str, Sequence[Markup]]]) -> str:
    """A whole HTML file. A section is an anchor, a heading and its parts; one without parts leaves no trace."""
    page = TEMPLATES.get_template("report.html.jinja")
    return page.render(title=title, sections=sections, figure_rules=RULES)


MOST_POINTS = 300  # of a curve
SPREAD = "The line is the mean over the runs of a group, the band reaches from the smallest to the largest value."
WHOLE = "network"  # one that is not cut
WAITING_NOTE = (
    "The edge at which a rank waited longest in training: alpha is what a block hands to the next one, target and "
    "stats are what goes to and from the feedback rank. Means over the runs of a group."
)
MOST_STEPS = 4  # of a run; more of them make small boxes
TIMELINE_NOTE = (
    "A box is what a rank computes, with a letter for its kind and the number of its step; a thin strip is a wait. "
    "Only a few of the traced steps are shown; bllpipe timeline draws all of them."
)


def learning(groups: Sequence[Group]) -> list[Markup]:
    """Test accuracy over epochs and training loss over steps, of the last block."""
    drawn = [
        *_line_chart(
            "Test accuracy of the last block",
            [Curve(group.label, _by_epoch(group)) for group in groups],
            ("epochs", "test accuracy (%)"),
            "Share of the test images that the last block's head gets right, after each test.",
            percent,
            share=True,
        ),
        *_line_chart(
            "Training loss of the last block",
            [Curve(group.label, _points(group, LAST, "loss")) for group in groups],
            ("training steps", "loss (nats per image)"),
            "Mean loss over the images since the point before.",
            "{:.3g}".format,
        ),
    ]
    return [_charts(drawn, "No run has a line of a test or of training in metrics.jsonl yet.")]


def alignment(groups: Sequence[Group]) -> list[Markup]:
    """A chart for every group that recorded it; nothing if none did."""
    caption = "1: a block's activations point where its target points; 0: they have nothing in common."
    drawn = []
    for group in groups:
        curves = [Curve(f"block {k}", _points(group, k, "alignment")) for k in range(group.num_blocks)]
        labels = ("training steps", "cosine of alpha and beta")
        drawn += _line_chart(f"Alignment: {group.label}", curves, labels, caption, "{:.2f}".format)
    return [PARTS.side_by_side(drawn)] if drawn else []


def _line_chart(
    title: str,
    curves: Sequence[Curve],
    labels: tuple[str, str],
    caption: str,
    number: Callable[[float], str],
    share: bool = False,
) -> list[Markup]:
    """The curves, and in words where they end, which a reader would try to read off the right edge; nothing if no curve
    has a point."""
    ends = "; ".join(f"{curve.name} {number(curve.points[-1].mean)}" for curve in curves if curve.points)
    if not ends:
        return []
    svg = curve_chart(title, curves, *labels, share)
    return [PARTS.chart(title, svg, _legend(curves), f"{caption} {SPREAD} At the end: {ends}.")]


def _legend(curves: Sequence[Curve], lines: bool = True) -> list[tuple[str, str]]:
    """Without curves that have no points; the others keep the look that they have in every chart."""
    return [(series_key(index, lines), curve.name) for index, curve in enumerate(curves) if curve.points]


def _charts(charts: Sequence[Markup], otherwise: str) -> Markup:
    found: Markup = PARTS.side_by_side(charts) if charts else PARTS.note(otherwise)
    return found


def _by_epoch(group: Group) -> list[Point]:
    per_epoch = next((length for run in group.runs if (length := run.steps_per_epoch())), None)
    if per_epoch is None:
        return []
    return [point._replace(x=point.x / per_epoch) for point in group.curve("evaluate", LAST, "accuracy").values()]


def _points(group: Group, block: int, name: str) -> list[Point]:
    """A curve of so few points that a page stays small: every second, third, ... and the last one."""
    points = list(group.curve("train", block, name).values())
    every = max(1, -(-len(points) // MOST_POINTS))
    return points[::-1][::every][::-1]


def accuracy_by_block(groups: Sequence[Group]) -> list[Markup]:
    """Dots by block, and the same numbers as a table."""
    sizes = {group.num_blocks for group in groups}
    # the blocks of the deepest cut, and a place of its own for networks that are not cut
    places = [f"block {k}" for k in range(max(sizes)) if max(sizes) > 1] + [WHOLE] * (1 in sizes)
    known = {group.label: [_accuracies(group, place) for place in places] for group in groups}
    dots = [Curve(label, [spread(x, row[x]) for x in range(len(row)) if row[x]]) for label, row in known.items()]
    if not any(curve.points for curve in dots):
        return [PARTS.note("No run is finished, so the accuracy of the blocks at the end is not known yet.")]
    title = "Test accuracy of every block's own head"
    svg = dot_chart(title, places, dots, "the block whose head answers", "test accuracy (%)", share=True)
    caption = "The dot is the mean over the finished runs of a group, the bar reaches from the smallest to the largest."
    rows = [[label, *map(_mean_text, row)] for label, row in known.items()]
    chart = PARTS.chart(title, svg, _legend(dots, lines=False), caption)
    return [PARTS.side_by_side([chart]), PARTS.table(("method", *places), rows, places)]


def _accuracies(group: Group, place: str) -> list[float]:
    """The accuracies of one block in all runs that have it."""
    found = []
    for run in group.runs:
        accuracy = run.block_accuracy
        names = [f"block {k}" for k in range(len(accuracy))] if len(accuracy) != 1 else [WHOLE]
        found += [value for name, value in zip(names, accuracy, strict=True) if name == place and value is not None]
    return found


def _mean_text(values: Sequence[float]) -> str:
    """``96.20 ± 0.60 %`` of fractions; without the deviation if there is none."""
    if not values:
        return UNKNOWN
    around = deviation(values)
    return f"{100 * statistics.fmean(values):.2f}{'' if around is None else f' ± {100 * around:.2f}'} %"


def time_use(groups: Sequence[Group]) -> list[Markup]:
    """A chart for every group with a finished run: a bar for each rank."""
    kinds = ("busy", "waiting")
    legend = [(piece_key(index), kind) for index, kind in enumerate(kinds)]
    drawn = []
    for group in groups:
        if rows := _time_rows(group.runs):
            title = f"Time of every rank: {group.label}"
            busiest = max(rows, key=lambda name: rows[name]["busy"])
            caption = (
                "Busy: computing; waiting: for messages or for room to send them (for the feedback rank the mean of "
                "its lanes); the rest is the turns of others and the loop itself. Means over the runs. "
                f"The busiest rank is {busiest} with {100 * rows[busiest]['busy']:.0f} %."
            )
            svg = bar_chart(title, rows, kinds, "rank, role", "share of the training time (%)")
            drawn.append(PARTS.chart(title, svg, legend, caption))
    return [_charts(drawn, "No run is finished, so busy and waiting times are not known yet.")]


def _time_rows(runs: Sequence[ReportRun]) -> dict[str, dict[str, float]]:
    """Busy and waiting shares by rank, means over the runs."""
    shares: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        if not (training := _training_seconds(run)):
            continue
        for rank, busy, waits in run.ranks():
            # lanes wait at the same time as each other, so of them the mean counts
            num_lanes = max(1, sum(edge.startswith("stats") for edge in waits))
            waiting = min(sum(waits.values()) / num_lanes / training, max(0.0, 1 - busy))
            shares.setdefault(rank, []).append((busy, waiting))
    means = {rank: [statistics.fmean(column) for column in zip(*row, strict=True)] for rank, row in shares.items()}
    return {rank: {"busy": busy, "waiting": waiting} for rank, (busy, waiting) in means.items()}


def _training_seconds(run: ReportRun) -> float | None:
    """Without tests and checkpoints, as ``busy`` is meant: images trained on over images a second. A little too short,
    as the first steps, which fill the pipeline, are slower."""
    steps, batch = finite(run.summary.get("steps")), finite(run.config.get("data.batch_size"))
    rate, seconds = finite(run.summary.get("images_per_second")), finite(run.summary.get("seconds"))
    if not (steps and batch and rate and seconds):
        return seconds
    return min(seconds, steps * batch / rate)  # a resumed run did not train all steps


def longest_waits(groups: Sequence[Group]) -> list[Markup]:
    """A row for every rank that waited; nothing if no run is finished."""
    rows = []
    for group in groups:
        waits: dict[str, dict[str, list[float]]] = {}  # seconds by rank and edge
        for run in group.runs:
            for rank, _, edges in run.ranks():
                for edge, seconds in edges.items():
                    waits.setdefault(rank, {}).setdefault(edge, []).append(seconds)
        for rank, lists in waits.items():
            means = {edge: statistics.fmean(values) for edge, values in lists.items()}
            if (total := sum(means.values())) > 0:
                edge, longest = max(means.items(), key=lambda item: item[1])
                rows.append([group.label, rank, edge, f"{longest:.1f}", f"{100 * longest / total:.0f} %"])
    numbers = ("seconds", "of its waiting")
    heads = ("method", "rank", "waited longest for", *numbers)
    return [PARTS.table(heads, rows, numbers), PARTS.note(WAITING_NOTE)] if rows else []


def excerpts(runs: Sequence[ReportRun]) -> list[Markup]:
    """One picture; nothing if no run has spans."""
    traced = [_excerpt(run.timeline) for run in runs if run.timeline is not None]
    if not traced:
        return []
    title = "Timeline of " + ", ".join(timeline.name for timeline in traced)
    return [PARTS.wide_drawing(picture(title, traced, heading=False)), PARTS.note(TIMELINE_NOTE)]


def _excerpt(timeline: Timeline) -> Timeline:
    """The steps in the middle, where every rank is at work."""
    steps = timeline.steps
    first = max(0, (len(steps) - MOST_STEPS) // 2)
    return timeline.cut(steps[first], steps[min(first + MOST_STEPS, len(steps)) - 1] + 1)
