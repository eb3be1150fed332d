"""Predictions of bllpipe plan --cluster, compared with runs on emulated devices, interleaved.

A stage waits instead of computing (benchmarks/cluster_devices.py), so many ranks fit on few cores; schedules,
processes and messages are real. Links have no delay, a delay of every packet, or a rate; each rank is then on a host
of its own, a network namespace (benchmarks/links.py), which only root may make. The overhead of a pass is derived from
one case, marked with *, as in benchmarks.predictions, and is that of all others.

    python -m benchmarks.cluster --ranks 4 8 16 --repeats 3 --json benchmarks/results/cluster-emulated.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from statistics import stdev
from typing import Any

from benchmarks import hosts, links, throughput
from benchmarks.cluster_cases import BATCH, ENGINES, LINKS, TEACHER, WORKS, Cell, predicted_step, taught_overhead
from benchmarks.report import Spread, table, write
from bllpipe.config import load_config
from bllpipe.engines import engine, topology
from bllpipe.utils.console import Bar

SEGMENTS, BUFFER = "1000", 8 << 20  # of TCP
START_SECONDS = 120.0
WINDOWS = 40  # simulated runs as long as a measured one
ERROR = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = parser().parse_args(arguments)
    every = cells(options)
    rates: dict[Cell, list[float]] = defaultdict(list)
    with Bar("cluster", options.repeats * len(every), quiet=True) as bar:
        for repetition, cell in product(range(options.repeats), every):
            rates[cell].append(measure(cell, options.steps))
            print(f"[{repetition + 1}/{options.repeats}] {cell}: {rates[cell][-1]:.2f} images/s", flush=True)
            bar.advance(str(cell))
            write(options.json, __doc__.splitlines()[0], vars(options), results(rates, options))
    found = results(rates, options)
    print(table(["case", "images/s", "predicted", "error", "of runs as long"], [_row(each) for each in found]))
    print(f"median of {options.repeats} runs of {options.steps} steps (smallest to largest), the first 10 % left out")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--links", nargs="+", choices=list(LINKS), default=list(LINKS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument(
        "--milliseconds", type=float, default=100.0, help="T of a rank is as much for every rank; a third is forward"
    )
    parser.add_argument("--steps", type=int, default=16, help="of a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--posted", type=int, default=2, help="receives that a block posts at once on an edge")
    parser.add_argument("--json", metavar="FILE")
    return parser


def cells(options: argparse.Namespace) -> list[Cell]:
    """All cases, that which teaches the overhead first; without links that this machine cannot have."""
    names = list(options.links)
    if reason := hosts.reason_against():
        print(f"left out: links with a delay or a rate: {reason}", file=sys.stderr)
        names = [name for name in names if name == "none"]
    seconds = options.milliseconds / 1e3
    found = [
        Cell(name, ranks, work, link, ranks * seconds)
        for ranks, work, link, name in product(options.ranks, options.works, names, options.engines)
    ]
    teacher = Cell(*TEACHER, TEACHER[1] * seconds)
    return [teacher, *(cell for cell in found if cell != teacher)]


def measure(cell: Cell, steps: int) -> float:
    """Images/s of a run in steady state."""
    settings = [
        *cell.settings,
        f"steps={steps}",
        "log.every_steps=1",
        "evaluate.every_epochs=never",
        "checkpoint.every_steps=never",
    ]
    with tempfile.TemporaryDirectory() as folder:
        words = ["--run-dir", f"{folder}/run", *throughput.words_of(settings)]
        if hosts.reason_against() is not None:
            throughput.launch(str(cell), "bllpipe.launch", words)
        else:
            _launch_on_hosts(cell, settings, words, Path(folder, "log"))
        summary: dict[str, Any] = json.loads(Path(folder, "run", "summary.json").read_text())
    return float(summary["images_per_second"])


def _launch_on_hosts(cell: Cell, settings: Sequence[str], words: Sequence[str], log: Path) -> None:
    """Every rank in a fork on a host of its own."""
    config = load_config(None, settings)
    engine(config.engine)  # imports torch, once for all forks
    number = topology(config).world_size
    delay, rate = LINKS[cell.link].delay, LINKS[cell.link].tc_rate
    with hosts.Network(number, delay, rate, links.PORT) as network:
        for host in range(number):
            _widen(network, host)
        ranks = [links.start_rank(network, rank, words, log) for rank in range(number)]
        relay = network._relay  # None without a delay
        processes = [*ranks, *([relay.pid] if relay else [])]
        threading.Thread(target=_put_first, args=(processes, log.parent / "run" / "metrics.jsonl"), daemon=True).start()
        if not links.all_succeed(ranks):
            raise SystemExit(f"{cell} failed:\n{log.read_text()}")


def _widen(network: hosts.Network, host: int) -> None:
    """Gives connections of a host windows for whole messages, from the start and after a pause: predictions know a
    latency and a rate, but not how TCP finds them out."""
    network_of_host = network.on(host, ["ip", "-o", "route", "show", "default"])
    route = subprocess.run(network_of_host, capture_output=True, text=True, check=True).stdout.split()
    for words in (
        ["ip", "route", "replace", *route, "initcwnd", SEGMENTS, "initrwnd", SEGMENTS],
        ["sysctl", "-q", "-w", "net.ipv4.tcp_slow_start_after_idle=0"],
        ["sysctl", "-q", "-w", f"net.ipv4.tcp_rmem=4096 {BUFFER} {BUFFER}"],
        ["sysctl", "-q", "-w", f"net.ipv4.tcp_wmem=4096 {BUFFER} {BUFFER}"],
    ):
        subprocess.run(network.on(host, words), check=True)


def _put_first(ranks: Sequence[int], metrics: Path) -> None:
    """Lets the threads of processes run as soon as they can, once the first step is done, whatever else the machine
    does: they need a fraction of its time. Without the right to do so they run like all others."""
    end = time.monotonic() + START_SECONDS
    while not metrics.exists() and time.monotonic() < end:
        time.sleep(0.05)
    with suppress(OSError):
        for thread in [task.name for rank in ranks for task in Path(f"/proc/{rank}/task").iterdir()]:
            os.sched_setscheduler(int(thread), os.SCHED_RR, os.sched_param(1))


def results(rates: Mapping[Cell, Sequence[float]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """What is reported of every cell that is measured."""
    teacher = next(cell for cell in rates if cell.is_teacher)
    overhead = taught_overhead(teacher, BATCH / Spread.of(rates[teacher]).median, options.posted)
    found = []
    for cell, measured in rates.items():
        windows = [
            predicted_step(cell, overhead, options.posted, options.steps, seed)
            for seed in range(WINDOWS if cell.jitter else 1)
        ]
        step = sum(windows) / len(windows)
        found.append(
            {
                "case": str(cell),
                "engine": cell.engine,
                "ranks": cell.ranks,
                "work": cell.work,
                "link": cell.link,
                "settings": cell.settings,
                "rates": list(measured),
                "images_per_second": Spread.of(measured),
                "limit": cell.limit,
                "predicted": BATCH / step,
                "error": BATCH / step / Spread.of(measured).median - 1,
                # how much the mean of runs as long as the measured ones varies by jitter alone: a standard deviation
                "deviation": stdev(windows) / step if len(windows) > 1 else 0.0,
                "overhead": overhead,
                "taught": cell.is_teacher,
            }
        )
    return found


def _row(found: Mapping[str, Any]) -> list[object]:
    deviation = f"+-{100 * found['deviation']:.1f} %" if found["deviation"] else ""
    error = f"{100 * found['error']:+.1f} %" + (" !" if abs(found["error"]) > ERROR else "")
    return [
        found["case"] + (" *" if found["taught"] else ""),
        found["images_per_second"],
        f"{found['predicted']:.1f}",
        error,
        deviation,
    ]


if __name__ == "__main__":
    sys.exit(main())
