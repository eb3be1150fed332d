"""The timelines of a report: a few steps of every run that traced some, below each other on one scale of time."""

from __future__ import annotations

from collections.abc import Sequence

from bllpipe.results.charts_svg import element
from bllpipe.results.report_page import note
from bllpipe.results.report_runs import Run
from bllpipe.results.timeline import Timeline
from bllpipe.results.timeline_picture import picture

MOST_STEPS = 4  # of a run; more of them make small boxes
CAPTION = (
    "A box is what a rank computes, with a letter for its kind and the number of its step; a thin strip is a wait. "
    "Only a few of the traced steps are shown; bllpipe timeline draws all of them."
)


def excerpts(runs: Sequence[Run]) -> str:
    """One picture; nothing if no run has spans."""
    traced = [excerpt(run.timeline) for run in runs if run.timeline is not None]
    if not traced:
        return ""
    title = "Timeline of " + ", ".join(timeline.name for timeline in traced)
    return element("div", picture(title, traced, heading=False), class_="wide") + note(CAPTION)


def excerpt(timeline: Timeline) -> Timeline:
    """The steps in the middle, where every rank is at work."""
    steps = timeline.steps
    first = max(0, (len(steps) - MOST_STEPS) // 2)
    return timeline.cut(steps[first], steps[min(first + MOST_STEPS, len(steps)) - 1] + 1)
