"""What every rank waited for longest: where to look when a rank is not busy."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bllpipe.results.report_groups import Group
from bllpipe.results.report_page import Cell, note, table
from bllpipe.results.report_runs import Run, finite

NUMBERS = ("seconds", "of its waiting")
CAPTION = (
    "The edge at which a rank waited longest in training: alpha is what a block hands to the next one, target and "
    "stats are what goes to and from the feedback rank. Means over the runs of a group."
)


def longest_waits(groups: Sequence[Group]) -> str:
    """A row for every rank that waited; nothing if no run is finished."""
    rows = [row for group in groups for row in _rows(group)]
    return table(("method", "rank", "waited longest for", *NUMBERS), rows, NUMBERS) + note(CAPTION) if rows else ""


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


def _waits(runs: Sequence[Run], rank: int) -> dict[str, float]:
    """Seconds by edge, means over the runs that know them."""
    found: dict[str, list[float]] = {}
    for run in runs:
        waiting = run.summary.get("waiting")
        edges = waiting[rank] if isinstance(waiting, list) and rank < len(waiting) else None
        for edge, seconds in edges.items() if isinstance(edges, dict) else ():
            found.setdefault(str(edge), []).append(finite(seconds) or 0.0)
    return {edge: statistics.fmean(values) for edge, values in found.items()}
