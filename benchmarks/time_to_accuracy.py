"""Training seconds until the last block's test accuracy reaches a target, for BLL and other methods.

All use the same two cores (or GPUs), network, data and epochs. The test follows every epoch and does not count as
training time. Every engine uses the learning rate that was best in short runs (benchmarks/questions/rates.yaml and
rates_and_heads.yaml). The engines are interleaved; every repetition has its own seed. ``strided`` is local
learning with strided heads and without beta; ``bll-strided`` has beta too, with a KL of weight 0.1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Spread, table, write
from benchmarks.table_settings import SMALL, SMALL_RATES
from benchmarks.throughput import launch, words_of

CONFIG = str(Path(__file__).parents[1] / "configs" / "cifar10_small.yaml")
ENGINES = ("bll", "dgl", "strided", "bll-strided", "1f1b", "gpipe", "ddp", "single")
LOCAL: dict[str, dict[str, Any]] = {
    "bll": {"method": "bll", "optimizer.lr": SMALL_RATES["bll"]},
    "dgl": {"method": "dgl", "optimizer.lr": SMALL_RATES["dgl"]},
    "strided": {"method": "dgl", "objective.head": "strided", "optimizer.lr": 0.4},
    "bll-strided": {
        "method": "bll",
        "objective.head": "strided",
        "objective.kl_weight": 0.1,
        "optimizer.lr": 0.4,
    },
}
NUMBER = 2  # of blocks, stages or replicas


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    runs: dict[str, list[list[dict[str, float]]]] = defaultdict(list)
    for seed in options.seeds:
        for engine in options.engines:
            with tempfile.TemporaryDirectory() as folder:
                runs[engine].append(run(settings_of(options, engine, seed), Path(folder)))
            tests = ", ".join(f"{100 * t['accuracy']:.1f} % at {t['seconds']:.0f} s" for t in runs[engine][-1])
            print(f"seed {seed}, {engine}: {tests}", flush=True)
    results = [result(engine, tests, options.accuracy / 100) for engine, tests in runs.items()]
    heads = ["engine", f"s to {options.accuracy:g} %", "reached by", "s in all", "accuracy at the end"]
    print(table(heads, [_row(each) for each in results]))
    print("median (smallest to largest) of the seeds; training alone, tests left out")
    write(options.json, __doc__.splitlines()[0], vars(options), results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_accuracy", description=__doc__)
    parser.add_argument("--data-path", required=True, metavar="FILE.npz", help="CIFAR-10 as an archive")
    parser.add_argument("--accuracy", type=float, default=65.0, metavar="%%", help="the target (default: 65)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--blocks", default=str(NUMBER), help="2, or after which unit to cut: [layer2.1]")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["bll", "strided", "1f1b", "ddp", "single"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", metavar="FILE")
    return parser


def settings_of(options: argparse.Namespace, engine: str, seed: int) -> list[str]:
    """One run."""
    small = {**SMALL, "epochs": options.epochs, "data.path": json.dumps(options.data_path), "seed": seed}
    end_to_end = {"method": "bp", "optimizer.lr": SMALL_RATES["bp"], "engine": engine}
    own = {**LOCAL[engine], "engine": "ranks"} if engine in LOCAL else end_to_end
    small["blocks"] = NUMBER if engine in ("ddp", "single") else options.blocks
    small["precision.compute"] = options.precision
    everything = {**small, **own, "pipeline.microbatches": options.microbatches, "checkpoint.every_steps": 0}
    return [f"{key}={value}" for key, value in everything.items()]


def run(settings: Sequence[str], folder: Path) -> list[dict[str, float]]:
    """The tests of one run: training seconds until then, and the last block's accuracy."""
    launch(settings[0], "bllpipe.launch", ["--config", CONFIG, "--run-dir", f"{folder}/run", *words_of(settings)])
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    tests = [line for line in lines if line["phase"] == "evaluate"]
    last = max(line["rank"] for line in tests)
    return [
        {"seconds": line["training_seconds"], "accuracy": line["accuracy"]} for line in tests if line["rank"] == last
    ]


def result(engine: str, runs: Sequence[Sequence[Mapping[str, float]]], target: float) -> dict[str, Any]:
    """The statistics over the seeds; runs that never reach the target have no time."""
    times = [next((test["seconds"] for test in tests if test["accuracy"] >= target), None) for tests in runs]
    reached = [time for time in times if time is not None]
    return {
        "engine": engine,
        "seconds_to_mark": Spread.of(reached) if reached else None,
        "num_reached": len(reached),
        "num_runs": len(runs),
        "seconds": Spread.of([tests[-1]["seconds"] for tests in runs]),
        "accuracy": Spread.of([100 * tests[-1]["accuracy"] for tests in runs]),
        "tests": [list(tests) for tests in runs],
    }


def _row(result: Mapping[str, Any]) -> list[object]:
    reached = f"{result['num_reached']} of {result['num_runs']}"
    return [result["engine"], result["seconds_to_mark"] or "-", reached, result["seconds"], result["accuracy"]]


if __name__ == "__main__":
    sys.exit(main())
