"""Images per second of BLL and of synchronous engines, launched as users launch them, interleaved and repeated.

emulated   every stage waits instead of computing (benchmarks/emulated.py); schedules, processes and messages are real.
           The limit is 1 / max T_k, T_k being forward and backward of rank k.
cpu        a ResNet on this machine's cores, cut by bllpipe plan for each engine. The limit is the step of the slowest
           block, measured in the same run while the other cores run the other blocks without any message.
gpu        the same on as many GPUs as there are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import limit
from benchmarks.report import Spread, table, write
from benchmarks.throughput_cases import ENGINES, Case, Plan, cases, real_settings
from bllpipe.cli.plan import REPETITIONS
from bllpipe.config import load_config
from bllpipe.utils.console import Bar

TIMEOUT = 600  # seconds a job
LIMIT_STEPS, LIMIT_WARMUP = 20, 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = parser().parse_args(arguments)
    every = cases(options, _plans(options))
    summaries: dict[str, list[dict[str, Any]]] = defaultdict(list)
    limits: dict[int, list[float]] = defaultdict(list)
    with Bar("throughput", options.repeats * len(every), quiet=True) as bar:
        for repetition, case in product(range(options.repeats), every):
            if case.engine == "bll" and not case.work.is_emulated:
                limits[case.work.ranks].append(_limit(case))
            with tempfile.TemporaryDirectory() as folder:
                summaries[case.name].append(run(case, options.steps, Path(folder)))
            rate = summaries[case.name][-1]["images_per_second"]
            print(f"[{repetition + 1}/{options.repeats}] {case.name}: {rate:.1f} images/s", flush=True)
            bar.advance(case.name)
    results = [result(case, summaries, every, limits) for case in every]
    print(table(HEADS, [_row(each) for each in results]))
    print(f"median of {options.repeats} jobs of {options.steps} steps (smallest to largest), the first 10 % left out")
    write(options.json, __doc__.splitlines()[0], vars(options), results)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--work", choices=["emulated", "cpu", "gpu"], default="emulated")
    parser.add_argument("--blocks", type=int, nargs="+", default=[4], metavar="P", help="ranks of a pipeline")
    parser.add_argument("--microbatches", type=int, nargs="+", default=[8], metavar="M")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["bll", "gpipe", "1f1b"])
    parser.add_argument(
        "--slow", type=float, nargs="+", default=[1.0], help="emulated: the second rank is so much slower"
    )
    parser.add_argument(
        "--jitter", type=float, nargs="+", default=[0.0], help="emulated: every time varies by this share"
    )
    parser.add_argument("--rings", type=int, nargs="+", default=[2], help="bll: messages that may wait at an edge")
    parser.add_argument(
        "--milliseconds", type=float, default=120.0, help="emulated: T of a rank, a third of it forward"
    )
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    return parser


def run(case: Case, steps: int, folder: Path) -> dict[str, Any]:
    """The summary of one job, whose run directory is ``folder``/run."""
    settings = [*case.settings, f"steps={steps}", "evaluate.every_epochs=0", "checkpoint.every_steps=0"]
    launch(case.name, "bllpipe.launch", ["--run-dir", f"{folder}/run", *words_of(settings)])
    summary: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return summary


def _plans(options: argparse.Namespace) -> dict[int, Plan]:
    """What bllpipe plan measures and predicts for real work, by ranks. Two stages a rank need twice the cuts."""
    if options.work == "emulated":
        return {}
    plans = {}
    for ranks in options.blocks:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "plan.json"
            asked = ["--blocks", str(ranks), str(2 * ranks), "--beside", str(ranks - 1), "--json", str(file)]
            parts = ["--microbatches", *map(str, options.microbatches), "--link", "2"]
            parts += ["--repetitions", str(max(2, min(REPETITIONS, options.steps)))]
            settings = words_of([*real_settings(options.work), *options.overrides])
            launch("bllpipe plan", "bllpipe.cli", ["plan", *asked, *parts, *settings])
            plans[ranks] = Plan.of(json.loads(file.read_text())["predictions"], ranks)
    return plans


def launch(name: str, module: str, argv: Sequence[str]) -> None:
    """Runs a module as users do; what it printed is shown if it fails."""
    start = ["env", "OMP_NUM_THREADS=1", sys.executable, "-m", module]
    done = subprocess.run([*start, *argv], capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout}\n{done.stderr}")


def words_of(settings: Sequence[str]) -> list[str]:
    """``--set`` before each of them."""
    return [word for setting in settings for word in ("--set", setting)]


def _limit(case: Case) -> float:
    """Images/s of the slowest block without messages."""
    config = load_config(None, case.settings)
    steps = limit.measure(config, LIMIT_STEPS, LIMIT_WARMUP)
    return config.data.batch_size / max(step.median for step in steps)


def result(
    case: Case,
    summaries: Mapping[str, Sequence[Mapping[str, Any]]],
    every: Sequence[Case],
    limits: Mapping[int, Sequence[float]],
) -> dict[str, Any]:
    """What is reported of a case. Ratios are medians of those within each repetition, as a shared machine is faster in
    one than in another; BLL's rate is that of its first case with the same work."""
    rates = _rates(summaries[case.name])
    bll = next((other.name for other in every if other.engine == "bll" and other.work == case.work), None)
    most = [case.limit] * len(rates) if case.limit else list(limits.get(case.work.ranks, ()))
    return {
        "case": case.name,
        "engine": case.engine,
        "ranks": case.work.ranks,
        "slow": case.work.slow,
        "jitter": case.work.jitter,
        "microbatches": case.microbatches,
        "settings": case.settings,
        "images_per_second": Spread.of(rates),
        "rates": rates,
        "limit": Spread.of(most) if most else None,
        "limits": most,
        "of_limit": _ratio(rates, most) if most else None,
        "bll_is_faster_by": _ratio(_rates(summaries[bll]), rates) if bll else None,
        "predicted": case.predicted,
        "prediction_error": case.predicted / median(rates) - 1 if case.predicted else None,
        **_of_ranks(summaries[case.name], median(rates), load_config(None, case.settings).data.batch_size),
    }


def _ratio(rates: Sequence[float], others: Sequence[float]) -> float:
    return median(rate / other for rate, other in zip(rates, others, strict=True))


def _of_ranks(own: Sequence[Mapping[str, Any]], rate: float, batch_size: int) -> dict[str, Any]:
    """Lists go by rank; medians over the jobs."""

    def medians(key: str) -> list[float]:
        return [median(values) for values in zip(*(summary[key] for summary in own), strict=True)]

    steps, sent = own[-1]["steps"], sum(sum(edges.values()) for edges in own[-1]["sent_bytes"])
    return {
        "busy": medians("busy"),
        "computing_seconds_per_step": [busy * batch_size / rate for busy in medians("busy")],
        "cpu_seconds_per_step": [seconds / steps for seconds in medians("cpu_seconds")],
        "peak_memory_bytes": medians("peak_memory_bytes"),
        "sent_bytes_per_image": sent / (steps * batch_size),
    }


def _rates(summaries: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(summary["images_per_second"]) for summary in summaries]


HEADS = [
    "case",
    "images/s",
    "of limit",
    "BLL / this",
    "predicted",
    "busy %",
    "CPU ms/step",
    "MiB a rank",
    "sent KiB/image",
]


def _row(result: Mapping[str, Any]) -> list[object]:
    of_limit, ratio, error = (result[key] for key in ("of_limit", "bll_is_faster_by", "prediction_error"))
    busy, cpu = (max(result[key]) for key in ("busy", "cpu_seconds_per_step"))
    return [
        result["case"],
        result["images_per_second"],
        f"{100 * of_limit:.1f} %" if of_limit else "-",
        f"{ratio:.2f}" if ratio else "-",
        f"{100 * error:+.1f} %" if error is not None else "-",
        f"{100 * busy:.0f}",
        f"{1e3 * cpu:.1f}",
        f"{max(result['peak_memory_bytes']) / 2**20:.0f}",
        f"{result['sent_bytes_per_image'] / 2**10:.1f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
