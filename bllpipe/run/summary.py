"""The end of a run: every rank's report, gathered into summary.json and one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bllpipe.config import Config
from bllpipe.ports import Store
from bllpipe.run.digest import state_sha256
from bllpipe.run.itinerary import Plan


def post_report(store: Store, rank: int, report: Mapping[str, Any]) -> None:
    """Hands this rank's report to whoever gathers them."""
    store.set(f"report/{rank}", json.dumps(report))


def gather_reports(store: Store, world_size: int) -> list[dict[str, Any]]:
    """The reports of all ranks, in order; waits for the slowest."""
    return [json.loads(store.get(f"report/{rank}")) for rank in range(world_size)]


def summarise(
    config: Config, tested_ranks: Sequence[int], reports: Sequence[Mapping[str, Any]], plan: Plan, seconds: float
) -> dict[str, Any]:
    """summary.json. Accuracies are fractions of the test set, ``busy`` fractions of the training time; ``waiting``
    seconds and ``sent_bytes`` bytes of the training, by edge; ``cpu_seconds`` those of all threads, tests included.
    Lists go by rank, the feedback rank last, but ``block_accuracy`` goes by ``tested_ranks``; of a run without a test
    it is empty, and ``test_accuracy`` null. ``ensemble_accuracy``, of all heads together, is only there with
    ``evaluate.ensemble``."""
    tested = [reports[rank] for rank in tested_ranks]
    accuracies = [report["accuracy"] for report in tested]
    ensemble = {"ensemble_accuracy": tested[-1]["ensemble_accuracy"]} if config.evaluate.ensemble else {}
    return {
        "method": config.method,
        "engine": config.engine,
        "world_size": len(reports),
        "steps": plan.last_step,
        "epochs": plan.last_step / plan.steps_per_epoch,
        "test_accuracy": accuracies[-1],
        "block_accuracy": [] if all(accuracy is None for accuracy in accuracies) else accuracies,
        **ensemble,
        "tested_ranks": list(tested_ranks),
        "images_per_second": tested[-1]["images_per_second"],
        "seconds": seconds,
        "roles": [report["role"] for report in reports],
        "busy": [report["busy"] for report in reports],
        "waiting": [report["waiting"] for report in reports],
        "sent_bytes": [report["sent_bytes"] for report in reports],
        "cpu_seconds": [report["cpu_seconds"] for report in reports],
        "peak_memory_bytes": [report["peak_memory_bytes"] for report in reports],
        "parameters": [report["parameters"] for report in reports],
        "state_sha256": state_sha256([report["digest"] for report in reports]),
    }


def table(summary: Mapping[str, Any]) -> str:
    """The summary for people: a row a rank, and the figures that matter below."""
    rows = [f"{'rank':>4}  {'role':<9} {'test accuracy':>13} {'busy':>6} {'parameters':>11} {'peak memory':>12}"]
    accuracies = dict(zip(summary["tested_ranks"], summary["block_accuracy"], strict=False))
    for rank, role in enumerate(summary["roles"]):
        rows.append(
            f"{rank:>4}  {role:<9} {_percent(accuracies.get(rank)):>13} {_percent(summary['busy'][rank]):>6} "
            f"{summary['parameters'][rank]:>11,} {summary['peak_memory_bytes'][rank] / 2**20:>8.0f} MiB"
        )
    if "ensemble_accuracy" in summary:
        rows.append(f"all heads together {_percent(summary['ensemble_accuracy']):>10}")
    return "\n".join([*rows, outcome(summary), f"state_sha256 {summary['state_sha256']}"])


def outcome(summary: Mapping[str, Any]) -> str:
    """The figures that matter, in one line."""
    rate, accuracy, steps = summary["images_per_second"], summary["test_accuracy"], f"{summary['steps']} steps"
    return (
        (f"{steps} without a test " if accuracy is None else f"test accuracy {_percent(accuracy)} after {steps} ")
        + f"({summary['epochs']:.1f} epochs) in {summary['seconds']:.1f} s; "
        + (f"{rate:.0f} images/s in steady state" if rate else "it ended before its rate was steady")
    )


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f} %"
