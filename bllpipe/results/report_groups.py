"""Groups of runs that differ in nothing but seed and name, and what their values have in common."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bllpipe.results.charts import Point
from bllpipe.results.report_runs import Run, finite

SAME_EXPERIMENT = ("seed", "name")  # the keys that may differ within a group
LAST = -1  # the block whose head is the network's own classifier
MOST_KEYS, MOST_LETTERS = 4, 28  # of a label


@dataclass(frozen=True)
class Group:
    """Repetitions of one experiment."""

    label: str
    runs: Sequence[Run]

    @property
    def num_blocks(self) -> int:
        return max(run.num_blocks for run in self.runs)

    def curve(self, phase: str, block: int, name: str) -> dict[int, Point]:
        """A figure of one block by step: mean and spread over the runs."""
        by_step: dict[int, list[float]] = {}
        for run in self.runs:
            number = run.num_blocks - 1 if block == LAST else block
            for step, value in run.figures(phase, number, name).items():
                by_step.setdefault(step, []).append(value)
        points = {step: spread(step, values) for step, values in sorted(by_step.items())}
        return {step: point for step, point in points.items() if point is not None}


def spread(x: float, values: Iterable[object]) -> Point | None:
    """Mean, smallest and largest of the finite values; None if there are none."""
    known = [value for value in map(finite, values) if value is not None]
    return Point(x, statistics.fmean(known), min(known), max(known), len(known)) if known else None


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1); None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order of their first runs, each called after its method and the keys that set it apart."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        rest = {key: value for key, value in run.config.items() if key not in SAME_EXPERIMENT}
        groups.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(run)
    members = list(groups.values())
    return [Group(label, runs) for label, runs in zip(_labels([runs[0] for runs in members]), members, strict=True)]


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The config keys that differ between the runs, each with its value in every run."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    values = {key: [written(run.config, key) for run in runs] for key in keys}
    return {key: row for key, row in values.items() if len(set(row)) > 1}


def written(config: Mapping[str, Any], key: str) -> str:
    """A config value as in YAML, or a dash if the key is absent."""
    if key not in config:
        return "\N{EN DASH}"
    value = config[key]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def mean_text(values: Sequence[float]) -> str:
    """``96.20 ± 0.60 %`` of fractions; without the deviation if there is none."""
    known = deviation(values)
    around = "" if known is None else f" ± {100 * known:.2f}"
    return f"{100 * statistics.fmean(values):.2f}{around} %"


def _labels(firsts: Sequence[Run]) -> list[str]:
    apart = [key for key in differing(firsts) if key not in ("method", *SAME_EXPERIMENT)]
    labels = [_label(run, apart) for run in firsts]
    return [
        label if labels.count(label) == 1 and len(apart) <= MOST_KEYS else f"{label} (group {number})"
        for number, label in enumerate(labels, 1)
    ]


def _label(run: Run, apart: Sequence[str]) -> str:
    pairs = [f"{key}={_short(written(run.config, key))}" for key in apart[:MOST_KEYS]]
    return ", ".join([str(run.config.get("method", "?")), *pairs, *["…"] * (len(apart) > MOST_KEYS)])


def _short(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"
