"""What ``bllpipe plan --cluster`` prints and writes: the table, the JSON and the picture of the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bllpipe.tools.planning.cluster.description import Cluster
from bllpipe.tools.planning.cluster.predictions import ENGINES, ClusterPrediction
from bllpipe.utils.console import table

NAMES = {"bll": "bll", "1f1b": "1f1b", "zero-bubble": "zero-bubble (ZB-H1)", "ddp": "ddp"}
NOTES = """\
predicted, not measured. images/s: in steady state. of ideal: of as many single devices that train end to end.
jitter: the share of the rate that it costs. goodput: of a run with failures, tenth to ninetieth percentile.
a layout is replicas of every block, or stages x pipelines, and shards or microbatches of a pipeline's batch.
Messages overlap with computation. In addition to its GPUs bll has feedback ranks, for which CPUs are enough."""


def cluster_table(predictions: Sequence[ClusterPrediction], has_failures: bool, has_price: bool) -> str:
    """A row a number of GPUs and engine."""
    heads = ["GPUs", "engine", "layout", "images/s", "of ideal", "jitter"]
    heads += ["goodput"] * has_failures + ["s an epoch"] + ["price an epoch"] * has_price
    rows = [
        [
            f"{found.num_gpus:,}",
            NAMES[found.engine],
            layout_text(found),
            f"{found.images_per_second:,.0f}",
            f"{100 * found.of_ideal:.1f} %",
            f"{100 * found.jitter_costs:.1f} %",
            *([_goodput_text(found)] if has_failures else []),
            f"{found.seconds_per_epoch:.4g}",
            *([f"{found.price_per_epoch:.4g}"] if has_price else []),
        ]
        for found in predictions
    ]
    return f"{table(heads, rows)}\n{NOTES}"


def layout_text(found: ClusterPrediction) -> str:
    if found.engine == "ddp":
        return f"{found.num_gpus} replicas"
    if found.engine == "bll":
        replicas = found.replicas
        even = f"{len(replicas)} x {replicas[0]}" if len(set(replicas)) == 1 else f"[{', '.join(map(str, replicas))}]"
        return f"{even}, {found.parts} shards"
    return f"{len(found.replicas)} x {found.replicas[0]}, {found.parts} microbatches"


def _goodput_text(found: ClusterPrediction) -> str:
    low, mean, high = (f"{100 * each:.1f}" for each in (found.goodput_low, found.goodput, found.goodput_high))
    return f"{mean} ({low}-{high}) %"


def left_out(cluster: Cluster, predictions: Sequence[ClusterPrediction]) -> list[str]:
    """What the table leaves out, and why."""
    lines = []
    for engine in ENGINES:
        there = {found.num_gpus for found in predictions if found.engine == engine}
        missing = [number for number in cluster.gpus if number not in there]
        if missing:
            numbers = ", ".join(map(str, missing))
            lines.append(f"left out: {NAMES[engine]} on {numbers} GPUs, as no layout divides them and fits the memory")
    return lines


def to_json(
    cluster: Cluster, names: Sequence[str], predictions: Sequence[ClusterPrediction], profile: dict[str, Any]
) -> dict[str, Any]:
    """The cluster, the profile, and all predictions; a cut as the units after which it cuts."""
    found = [{**asdict(each), "cut": [names[position - 1] for position in each.cut]} for each in predictions]
    return {"cluster": asdict(cluster), "profile": profile, "predictions": found}
