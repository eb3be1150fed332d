"""Images per second of BLL beside synchronous engines, all launched as users launch them, in turn, several times over.

emulated   every stage waits instead of computing (benchmarks/emulated.py); schedules, processes and messages are real.
           The limit is 1 / max T_k, T_k being forward and backward of rank k.
cpu        a ResNet on this machine's cores. The limit is the slower block's own step, measured while the other cores
           run the other blocks without any message (benchmarks/limit.py).
gpu        the same on as many GPUs as there are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import Spread, table, write
from benchmarks.throughput_cases import ENGINES, Case, cases

TIMEOUT = 600  # seconds a job


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and carries it out; returns the exit code."""
    options = parser().parse_args(arguments)
    every = [case for blocks in options.blocks for case in cases(options, blocks)]
    rates: dict[str, list[float]] = {case.name: [] for case in every}
    busy: dict[str, list[float]] = {}
    for repetition in range(options.repeats):
        for case in every:
            summary = run(case, options.steps)
            rates[case.name].append(summary["images_per_second"])
            busy[case.name] = summary["busy"]
            print(f"[{repetition + 1}/{options.repeats}] {case.name}: {rates[case.name][-1]:.1f} images/s", flush=True)
    results = [_result(case, rates, busy, every) for case in every]
    print(table(HEADS, [_row(result) for result in results]))
    print(f"median of {options.repeats} jobs of {options.steps} steps (smallest to largest), the first 10 % left out")
    write(options.json, __doc__.splitlines()[0], vars(options), results)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--work", choices=["emulated", "cpu", "gpu"], default="emulated")
    parser.add_argument("--blocks", type=int, nargs="+", default=[4], metavar="P", help="ranks of a pipeline")
    parser.add_argument("--microbatches", type=int, nargs="+", default=[8], metavar="M")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["bll", "gpipe", "1f1b"])
    parser.add_argument("--slow", type=float, default=1.0, help="emulated: how much slower the second rank is")
    parser.add_argument("--jitter", type=float, default=0.0, help="emulated: every time varies by this share")
    parser.add_argument("--rings", type=int, nargs="+", default=[2], help="bll: receive buffers an edge")
    parser.add_argument(
        "--milliseconds", type=float, default=120.0, help="emulated: T of a rank, a third of it forward"
    )
    parser.add_argument(
        "--cuts", nargs="*", default=[], help="cpu, gpu: cut after these units (default: equal numbers)"
    )
    parser.add_argument("--limit", type=float, metavar="IMAGES/S", help="cpu, gpu: as benchmarks.limit has measured it")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    return parser


def run(case: Case, steps: int) -> dict[str, Any]:
    """The summary of one job."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [*case.settings, f"steps={steps}", "evaluate.every_epochs=0", "checkpoint.every_steps=0"]
        words = [word for setting in settings for word in ("--set", setting)]
        start = ["env", "OMP_NUM_THREADS=1", sys.executable, "-m", "bllpipe.launch", "--run-dir", f"{folder}/run"]
        done = subprocess.run([*start, *words], capture_output=True, text=True, timeout=TIMEOUT)
        if done.returncode:
            raise SystemExit(f"{case.name} failed:\n{done.stdout}\n{done.stderr}")
        summary: dict[str, Any] = json.loads(Path(f"{folder}/run/summary.json").read_text())
        return summary


def _result(
    case: Case, rates: dict[str, list[float]], busy: dict[str, list[float]], every: Sequence[Case]
) -> dict[str, Any]:
    found = Spread.of(rates[case.name])
    rivals = [other for other in every if other.is_bll and other.ranks == case.ranks]
    bll = max((median(rates[other.name]) for other in rivals), default=None)
    return {
        "case": case.name,
        "engine": case.engine,
        "ranks": case.ranks,
        "microbatches": case.microbatches,
        "settings": case.settings,
        "images_per_second": found,
        "limit": case.limit,
        "of_limit": found.median / case.limit if case.limit else None,
        "bll_is_faster_by": bll / found.median if bll else None,
        "busy": busy[case.name],
    }


HEADS = ["case", "images/s", "limit", "of limit", "BLL / this"]


def _row(result: dict[str, Any]) -> list[object]:
    limit, of_limit, ratio = (result[key] for key in ("limit", "of_limit", "bll_is_faster_by"))
    return [
        result["case"],
        result["images_per_second"],
        f"{limit:.1f}" if limit else "-",
        f"{100 * of_limit:.1f} %" if of_limit else "-",
        f"{ratio:.2f}" if ratio else "-",
    ]


if __name__ == "__main__":
    sys.exit(main())
