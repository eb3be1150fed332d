"""What run directories tell a report, read as far as it goes, with a note on whatever is missing or unreadable; and
groups of runs that differ in nothing but seed and name.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from bllpipe.config.loader import flat, stored_mapping
from bllpipe.errors import ConfigError
from bllpipe.tools.analysis.timeline import Timeline, read_timeline
from bllpipe.utils.files import json_object

SAME_EXPERIMENT = ("seed", "name")  # the keys that may differ within a group
LAST = -1  # the block whose head is the network's own classifier
MOST_KEYS, MOST_LETTERS = 4, 28  # of a label
MOST_RANKS = 32  # in a chart: of more, one replica a block
FARTHEST = 1e100  # what lies beyond is as good as infinite, and its differences may overflow


class Point(NamedTuple):
    """The mean of ``n`` finite values at ``x``, with the smallest and the largest of them."""

    x: float
    mean: float
    low: float
    high: float
    n: int = 1


@dataclass(frozen=True)
class Line:
    """One line of metrics.jsonl that a block wrote."""

    phase: str
    step: int
    epoch: int
    block: int
    metrics: Mapping[str, Any]


@dataclass
class ReportRun:
    """One run; ``config`` has dotted keys, ``summary`` is empty unless the run came to its end."""

    name: str
    config: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    timeline: Timeline | None = None

    @property
    def num_blocks(self) -> int:
        """Of the summary, or else what the config asks for, or else as many as wrote metrics."""
        blocks = 1 if self.config.get("engine") == "single" else self.config.get("blocks")
        asked = blocks if isinstance(blocks, int) else len(blocks) + 1 if isinstance(blocks, list) else 0
        return len(self.block_accuracy) or asked or max([0, *(line.block + 1 for line in self.lines)])

    @property
    def block_accuracy(self) -> list[float | None]:
        """Fractions of the test set at the end, None where a block was not tested."""
        found = self.summary.get("block_accuracy")
        return [finite(value) for value in found] if isinstance(found, list) else []

    def metric(self, phase: str, block: int, name: str) -> dict[int, float]:
        """A metric of one block by step; a step that was logged twice counts as the last time."""
        chosen = [line for line in self.lines if (line.phase, line.block) == (phase, block)]
        known = {line.step: finite(line.metrics.get(name)) for line in chosen}
        return {step: value for step, value in known.items() if value is not None}

    def ranks(self) -> Iterator[tuple[str, float, dict[str, float]]]:
        """Number and role of every rank, its busy share, and the seconds it waited at each edge, of the summary; of
        many ranks only the busiest replica of each block."""
        columns = [self.summary.get(key) for key in ("roles", "busy", "waiting")]
        if all(isinstance(column, list) for column in columns):
            rows = list(enumerate(zip(*columns, strict=False)))
            for rank, (role, busy, waiting) in _slowest(rows) if len(rows) > MOST_RANKS else rows:
                edges = waiting.items() if isinstance(waiting, dict) else ()
                yield f"{rank} {role}", finite(busy) or 0.0, {str(edge): finite(value) or 0.0 for edge, value in edges}

    def steps_per_epoch(self) -> float | None:
        """From the summary, or else from the first test, which ends an epoch; None if there was neither."""
        steps, epochs = finite(self.summary.get("steps")), finite(self.summary.get("epochs"))
        if steps and epochs:
            return steps / epochs
        tests = [line for line in self.lines if line.phase == "evaluate" and line.step > 0]
        return tests[0].step / (tests[0].epoch + 1) if tests else None


def read_runs(paths: Sequence[Path]) -> list[ReportRun]:
    """Every run once, in the order given. Raises ConfigError for a directory that holds none."""
    if not paths:
        raise ConfigError("found no run to report on; expected at least one run directory, such as runs/NAME")
    distinct = list({path.resolve(): path for path in reversed(paths)}.values())[::-1]
    names = [path.resolve().name for path in distinct]
    unique = [str(path) if names.count(name) > 1 else name for path, name in zip(distinct, names, strict=True)]
    return [read_run(path, name) for path, name in zip(distinct, unique, strict=True)]


def read_run(path: Path, name: str) -> ReportRun:
    """One run, called ``name``. Raises ConfigError if there is no config.yaml or it is none."""
    if not (path / "config.yaml").is_file():
        raise ConfigError(
            f"{path} {_found(path)}; expected a run directory with a config.yaml, such as runs/NAME, "
            f"which python -m bllpipe.launch makes"
        )
    run = ReportRun(name, flat(stored_mapping(str(path / "config.yaml"))))
    run.environment = _record(path / "env.json", run.notes)
    run.status = _record(path / "status.json", run.notes)
    if "reason" in run.status:
        run.notes.append(f"{run.status.get('status')}: {run.status['reason']}")
    run.summary = _summary(_record(path / "summary.json", run.notes), run)
    run.lines = _metrics(path / "metrics.jsonl", run.notes)
    if any((path / "spans").glob("rank-*.jsonl")):
        try:
            run.timeline = replace(read_timeline(path, run.notes.append), name=name)
        except ConfigError as error:
            run.notes.append(str(error))
    return run


def _slowest(rows: Sequence[tuple[int, tuple[Any, Any, Any]]]) -> list[tuple[int, tuple[Any, Any, Any]]]:
    """The rows of ranks, of the replicas of a block that of the busiest, which the others wait for."""
    found: dict[str, tuple[int, tuple[Any, Any, Any]]] = {}
    for row in rows:
        place = re.sub(r" replica \d+$", "", str(row[1][0]))
        if place not in found or (finite(row[1][1]) or 0.0) > (finite(found[place][1][1]) or 0.0):
            found[place] = row
    return list(found.values())


def finite(value: object) -> float | None:
    """``value`` if it is a number with a place on an axis: neither NaN nor infinite nor absurd."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) < FARTHEST else None


def _found(path: Path) -> str:
    if not path.exists():
        return "does not exist"
    if not path.is_dir():
        return "is a file"
    inside = sorted(entry.name for entry in path.iterdir())[:4]
    return f"holds {', '.join(inside)}, ..." if inside else "is empty"


def _record(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object; empty, with a note, if it cannot be read."""
    try:
        found = json_object(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        notes.append(f"there is no {path.name}")
        return {}
    if not found:
        notes.append(f"{path.name} is damaged and left out")
    return found


def _summary(found: dict[str, Any], run: ReportRun) -> dict[str, Any]:
    """A summary counts only if it is that of the end, and not of an earlier end before the run was resumed."""
    status, step = run.status.get("status"), run.status.get("step")
    is_last = not run.status or (status in ("completed", "preempted") and step == found.get("steps"))
    if found and not is_last:
        run.notes.append(
            f"summary.json, of step {found.get('steps')}, is left out: since then the run was resumed ({status}, step "
            f"{step})"
        )
    return found if is_last else {}


def _metrics(path: Path, notes: list[str]) -> list[Line]:
    try:
        written = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        notes.append("there is no metrics.jsonl, so it has no curves")
        return []
    parsed = [_parse(text) for text in written]
    damaged = [number for number, line in enumerate(parsed, 1) if line is None]
    if damaged:
        first = f"the first is line {damaged[0]}"
        notes.append(f"metrics.jsonl: damaged lines, left out: {len(damaged)} of {len(parsed)} ({first})")
    lines = [line for line in parsed if line is not None and line.block >= 0]
    odd = sum(isinstance(value, float) and finite(value) is None for line in lines for value in line.metrics.values())
    if odd:
        notes.append(f"metrics.jsonl: values that are not finite, left out of the charts: {odd}")
    if not lines:
        notes.append("metrics.jsonl holds no line of a block yet")
    return lines


def _parse(text: str) -> Line | None:
    """A line of metrics.jsonl; its block is -1 for a feedback loop. None for garbage."""
    found = json_object(text)
    kind, _, number = re.sub(r"^(block \d+) replica \d+$", r"\1", str(found.get("role", ""))).partition(" ")
    step, epoch = found.get("step"), found.get("epoch")
    if not (kind and isinstance(step, int) and isinstance(epoch, int)) or None in (finite(step), finite(epoch)):
        return None
    if kind == "block" and not (number.isdecimal() and len(number) < 9):
        return None
    return Line(str(found.get("phase")), step, epoch, int(number) if kind == "block" else -1, found)


@dataclass(frozen=True)
class Group:
    """Repetitions of one experiment."""

    label: str
    runs: Sequence[ReportRun]

    @property
    def num_blocks(self) -> int:
        return max(run.num_blocks for run in self.runs)

    def curve(self, phase: str, block: int, name: str) -> dict[int, Point]:
        """A metric of one block by step: mean and spread over the runs."""
        by_step: dict[int, list[float]] = {}
        for run in self.runs:
            number = run.num_blocks - 1 if block == LAST else block
            for step, value in run.metric(phase, number, name).items():
                by_step.setdefault(step, []).append(value)
        return {step: spread(step, values) for step, values in sorted(by_step.items())}


def spread(x: float, values: Sequence[float]) -> Point:
    """Mean, smallest and largest of at least one value."""
    return Point(x, statistics.fmean(values), min(values), max(values), len(values))


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1); None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def grouped(runs: Sequence[ReportRun]) -> list[Group]:
    """Groups in the order of their first runs, each called after its method and the keys that set it apart."""
    groups: dict[str, list[ReportRun]] = {}
    for run in runs:
        rest = {key: value for key, value in run.config.items() if key not in SAME_EXPERIMENT}
        groups.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(run)
    members = list(groups.values())
    return [Group(label, runs) for label, runs in zip(_labels([runs[0] for runs in members]), members, strict=True)]


def differing(runs: Sequence[ReportRun]) -> dict[str, list[str]]:
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


def _labels(firsts: Sequence[ReportRun]) -> list[str]:
    apart = [key for key in differing(firsts) if key not in ("method", *SAME_EXPERIMENT)]
    labels = [_label(run, apart) for run in firsts]
    return [
        label if labels.count(label) == 1 and len(apart) <= MOST_KEYS else f"{label} (group {number})"
        for number, label in enumerate(labels, 1)
    ]


def _label(run: ReportRun, apart: Sequence[str]) -> str:
    values = {key: written(run.config, key) for key in apart[:MOST_KEYS]}
    short = {key: text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…" for key, text in values.items()}
    pairs = [f"{key}={text}" for key, text in short.items()]
    return ", ".join([str(run.config.get("method", "?")), *pairs, *["…"] * (len(apart) > MOST_KEYS)])
