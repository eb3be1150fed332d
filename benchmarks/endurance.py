"""A long run of emulated stages that take no time: does it become slower, does the memory of a rank grow?

A line is fitted to the metrics of every rank after the first tenth of the run, and its slope is printed as the change
over the whole run. The stages compute nothing, so a slope is that of the engine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import linear_regression, mean
from typing import Any

from benchmarks import throughput
from benchmarks.report import table, write
from benchmarks.throughput_cases import EMULATED_BATCH, cases

WARMUP = 0.1  # of the steps


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and prints a row a rank."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description=__doc__)
    parser.add_argument("--blocks", type=int, default=2, metavar="P")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=100, help="steps between two figures")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        lines = _run(options, Path(folder))
    results = trends(lines, options.steps)
    print(table(["rank", "ms a step", "change over the run", "MiB", "change over the run"], [_row(r) for r in results]))
    write(options.json, __doc__.splitlines()[0], vars(options), results)
    return 0


def _run(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The training lines of metrics.jsonl."""
    argv = ["--blocks", str(options.blocks), "--milliseconds", "0", "--engines", "bll"]
    (case,) = cases(throughput.parser().parse_args(argv))
    case = replace(case, settings=[*case.settings, f"log.every_steps={options.every}"])
    throughput.run(case, options.steps, folder)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "train"]


def trends(lines: Sequence[Mapping[str, Any]], steps: int) -> list[dict[str, Any]]:
    """Seconds per step and resident memory of every block and feedback loop, and the change of both from the end of the
    warm-up to the end of the run, by a least-squares line, as a fraction of the mean."""
    by_actor: dict[tuple[int, str], list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        if line["step"] > WARMUP * steps:
            by_actor[line["rank"], line["actor"]].append(line)
    return [
        {
            "rank": rank,
            "actor": actor,
            "n": len(own),
            "step_seconds": EMULATED_BATCH * mean(map(_image_seconds, own)),
            "step_change": _change(own, _image_seconds),
            "resident_bytes": mean(line["resident_bytes"] for line in own),
            "resident_change": _change(own, lambda line: float(line["resident_bytes"])),
        }
        for (rank, actor), own in sorted(by_actor.items())
    ]


def _image_seconds(line: Mapping[str, Any]) -> float:
    return 1 / float(line["images_per_second"])


def _change(lines: Sequence[Mapping[str, Any]], figure: Callable[[Mapping[str, Any]], float]) -> float:
    steps, figures = [line["step"] for line in lines], [figure(line) for line in lines]
    return float(linear_regression(steps, figures).slope * (steps[-1] - steps[0]) / mean(figures))


def _row(result: Mapping[str, Any]) -> list[object]:
    return [
        f"{result['rank']} {result['actor']}",
        f"{1e3 * result['step_seconds']:.3f}",
        f"{100 * result['step_change']:+.2f} %",
        f"{result['resident_bytes'] / 2**20:.1f}",
        f"{100 * result['resident_change']:+.3f} %",
    ]


if __name__ == "__main__":
    sys.exit(main())
