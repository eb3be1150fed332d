"""The report: one HTML file that shows what came out of some runs, and what sets them apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

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
    Bullets,
    Cell,
    Note,
    Part,
    Section,
    Table,
    accuracy_by_block,
    alignment,
    excerpts,
    learning,
    longest_waits,
    render_page,
    time_use,
)

UNKNOWN = "\N{EN DASH}"
FACTS = ("bllpipe", "python", "torch", "git", "processor", "cpus", "gpus", "platform")


def write_report(runs: Sequence[Path], out: Path) -> None:
    """Writes ``out``, one HTML file without scripts that needs no network, from run directories.

    Raises ConfigError if one of them holds no run, or ``out`` cannot be written.
    """
    found = read_runs(runs)
    text = _report(found)
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
            Section("runs", "Runs", [_runs_table(runs), *([Bullets(missing)] if missing else [])]),
            Section("machines", "Machines and versions", [_machines(runs)]),
            Section("accuracy", "Accuracy by method", _accuracy(groups)),
            Section("learning", "Learning curves", learning(groups)),
            Section("blocks", "Accuracy of every block", accuracy_by_block(groups)),
            Section("alignment", "Alignment of alpha and beta", alignment(groups)),
            Section("time", "Busy and waiting", [*time_use(groups), *longest_waits(groups)]),
            Section("timeline", "Who did what when", excerpts(runs)),
            Section("config", "What sets the runs apart", _differences(runs)),
        ],
    )


def _runs_table(runs: Sequence[ReportRun]) -> Table:
    numbers = ("seed", "epochs", "test accuracy", "images/s", "seconds")
    heads = ("run", "method", "engine", "model", "data", *numbers, "state_sha256", "status")
    return Table(heads, [_run_row(run) for run in runs], numbers)


def _run_row(run: ReportRun) -> list[Cell]:
    digest = str(run.summary.get("state_sha256", ""))
    return [
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
        _status(run),
    ]


def _number(value: object, pattern: str) -> str:
    known = finite(value)
    return UNKNOWN if known is None else pattern.format(known)


def _status(run: ReportRun) -> str:
    """``failed at step 60, rank 2``; a run that ended well needs one word."""
    known = str(run.status.get("status", "unknown"))
    where = ", ".join(f"{key} {run.status[key]}" for key in ("step", "rank") if key in run.status)
    return f"{known} at {where}" if where and known != "completed" else known


def _machines(runs: Sequence[ReportRun]) -> Table:
    """A row for every machine and set of versions, with the runs that were made there."""
    places: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        facts = tuple(_fact(run.environment.get(fact)) for fact in FACTS)
        places.setdefault(facts, []).append(run.name)
    rows = [["all" if len(names) == len(runs) else ", ".join(names), *facts] for facts, names in places.items()]
    return Table(("runs", *FACTS), rows, ("cpus",))


def _fact(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"{value.count(one)} x {one}" for one in dict.fromkeys(map(str, value))) or "none"
    return UNKNOWN if value is None else str(value)


def _accuracy(groups: Sequence[Group]) -> list[Part]:
    numbers = ("mean", "standard deviation", "n")
    rows: list[list[Cell]] = []
    for group in groups:
        finished = [run for run in group.runs if finite(run.summary.get("test_accuracy")) is not None]
        unknown = "not tested" if any(run.summary for run in group.runs) else "no finished run"
        known = [float(run.summary["test_accuracy"]) for run in finished]
        seeds = ", ".join(written(run.config, "seed") for run in finished)
        around = deviation(known)
        rows.append(
            [
                group.label,
                f"{100 * statistics.fmean(known):.2f} %" if known else unknown,
                UNKNOWN if around is None else f"{100 * around:.2f} %",
                str(len(known)),
                seeds,
            ]
        )
    explained = (
        "Test accuracy of the last block at the end: mean and sample standard deviation over the n finished runs "
        "that differ in nothing but seed and name."
    )
    return [Table(("method", *numbers, "seeds"), rows, numbers), Note(explained)]


def _differences(runs: Sequence[ReportRun]) -> list[Part]:
    if len(runs) == 1:
        return []
    found = differing(runs)
    if not found:
        return [Note("No config key differs between the runs.")]
    return [Table(("key", *(run.name for run in runs)), [[key, *row] for key, row in found.items()])]
