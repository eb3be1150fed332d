"""The report: one HTML file that shows what came out of some runs, and what sets them apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from bllpipe.errors import ConfigError
from bllpipe.tools.analysis.report_data import (
    Group,
    ReportRun,
    deviation,
    differing,
    finite,
    grouped,
    read_runs,
    written,
)
from bllpipe.tools.analysis.report_figures import (
    PARTS,
    UNKNOWN,
    accuracy_by_block,
    alignment,
    excerpts,
    learning,
    longest_waits,
    render_page,
    time_use,
)
from bllpipe.utils.console import percent

Cell = str | tuple[str, str]  # text, or text with a longer one for the pointer
MACHINE = ("bllpipe", "python", "torch", "git", "processor", "cpus", "gpus", "platform")  # keys of env.json


def write_report(runs: Sequence[Path], out: Path) -> None:
    """Writes ``out``, one HTML file without scripts that needs no network, from run directories.

    Raises ConfigError if one of them holds no run, or ``out`` cannot be written.
    """
    text = _report(read_runs(runs))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8", errors="backslashreplace")  # a run's name may be no UTF-8
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written ({error.strerror}); expected the name of a file, such as report.html"
        ) from error


def _report(runs: Sequence[ReportRun]) -> str:
    groups = grouped(runs)
    title = f"Report on run {runs[0].name}" if len(runs) == 1 else f"Report on {len(runs)} runs"
    missing = [f"{run.name}: {text}" for run in runs for text in run.notes]
    return render_page(
        title,
        [
            ("runs", "Runs", [*_runs(runs), *([PARTS.bullets(missing)] if missing else [])]),
            ("machines", "Machines and versions", _machines(runs)),
            ("accuracy", "Accuracy by method", _accuracy(groups)),
            ("learning", "Learning curves", learning(groups)),
            ("blocks", "Accuracy of every block", accuracy_by_block(groups)),
            ("alignment", "Alignment of alpha and beta", alignment(groups)),
            ("time", "Busy and waiting", [*time_use(groups), *longest_waits(groups)]),
            ("timeline", "Who did what when", excerpts(runs)),
            ("config", "What sets the runs apart", _differences(runs)),
        ],
    )


def _runs(runs: Sequence[ReportRun]) -> list[Markup]:
    numbers = ("seed", "epochs", "test accuracy", "images/s", "seconds")
    rows: list[list[Cell]] = []
    for run in runs:
        digest = str(run.summary.get("state_sha256", ""))
        status = str(run.status.get("status", "unknown"))
        where = ", ".join(f"{key} {run.status[key]}" for key in ("step", "rank") if key in run.status)
        rows.append(
            [
                run.name,
                *(written(run.config, key) for key in ("method", "engine")),
                f"{written(run.config, 'model.name')}, width {written(run.config, 'model.width')}",
                f"{written(run.config, 'data.name')}, batch {written(run.config, 'data.batch_size')}",
                written(run.config, "seed"),
                _number(run.summary.get("epochs"), "{:.4g}"),
                _number(run.summary.get("test_accuracy"), "{:.2%}").replace("%", " %"),
                _number(run.summary.get("images_per_second"), "{:,.0f}"),
                _number(run.summary.get("seconds"), "{:,.1f}"),
                (digest[:12], digest) if digest else UNKNOWN,
                f"{status} at {where}" if where and status != "completed" else status,
            ]
        )
    heads = ("run", "method", "engine", "model", "data", *numbers, "state_sha256", "status")
    return [PARTS.table(heads, rows, numbers)]


def _number(value: object, pattern: str) -> str:
    known = finite(value)
    return UNKNOWN if known is None else pattern.format(known)


def _machines(runs: Sequence[ReportRun]) -> list[Markup]:
    """A row for every machine and set of versions, with the runs that were made there."""
    places: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        place = tuple(_counted(run.environment.get(key)) for key in MACHINE)
        places.setdefault(place, []).append(run.name)
    rows = [["all" if len(names) == len(runs) else ", ".join(names), *place] for place, names in places.items()]
    return [PARTS.table(("runs", *MACHINE), rows, ("cpus",))]


def _counted(value: object) -> str:
    """A list as ``2 x A, 1 x B``."""
    if isinstance(value, list):
        return ", ".join(f"{value.count(one)} x {one}" for one in dict.fromkeys(map(str, value))) or "none"
    return UNKNOWN if value is None else str(value)


def _accuracy(groups: Sequence[Group]) -> list[Markup]:
    rows = []
    for group in groups:
        finished = [run for run in group.runs if finite(run.summary.get("test_accuracy")) is not None]
        known = [float(run.summary["test_accuracy"]) for run in finished]
        unknown = "not tested" if any(run.summary for run in group.runs) else "no finished run"
        mean = percent(statistics.fmean(known)) if known else unknown
        around = UNKNOWN if (found := deviation(known)) is None else percent(found)
        seeds = ", ".join(written(run.config, "seed") for run in finished)
        rows.append([group.label, mean, around, str(len(known)), seeds])
    explained = (
        "Test accuracy of the last block at the end: mean and sample standard deviation over the n finished runs "
        "that differ in nothing but seed and name."
    )
    numbers = ("mean", "standard deviation", "n")
    return [PARTS.table(("method", *numbers, "seeds"), rows, numbers), PARTS.note(explained)]


def _differences(runs: Sequence[ReportRun]) -> list[Markup]:
    if len(runs) == 1:
        return []
    if found := differing(runs):
        return [PARTS.table(("key", *(run.name for run in runs)), [[key, *row] for key, row in found.items()])]
    return [PARTS.note("No config key differs between the runs.")]
