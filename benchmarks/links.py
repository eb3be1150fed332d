"""Images per second over slow links: BLL and synchronous engines, every rank on a host of its own.

Hosts are network namespaces of this machine, whose packets a relay delays (benchmarks/hosts.py); what each host sends
may be limited to a rate. The store of a job, which no step needs, is not delayed. Devices are emulated
(benchmarks/emulated.py): a stage waits instead of computing. Processes, messages and TCP are real. The limit of every
engine is the rate of its devices alone, a batch every T.

    python -m benchmarks.links --repeats 3 --json benchmarks/results/links-emulated.json
    python -m benchmarks.links --show benchmarks/results/links-emulated.json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import hosts, throughput
from benchmarks.report import Spread, markdown, write
from benchmarks.throughput_cases import EMULATED_BATCH, Case, cases
from bllpipe import launch
from bllpipe.config import load_config
from bllpipe.distributed.torchrun import become_rank
from bllpipe.engines import engine, topology
from bllpipe.utils.console import Bar

TITLE = "Images per second over slow links"
PORT = 29400
TIMEOUT = 900.0  # seconds a job
MICROBATCHES = 8
WEIGHTS = 40_000  # of a stage, for DDP to average: ten times as many bytes an image as BLL sends, as with a ResNet-34
DEPTH = 4
# Rows of the table: name, engine of benchmarks.throughput, settings.
ROWS = {
    "bll": ("bll", []),
    "bll-deep": (
        "bll",
        [f"backend.ring={DEPTH}", f"backend.in_flight={DEPTH}", f"feedback.lag={DEPTH}"],
    ),
    "1f1b": ("1f1b", []),
    "zbv": ("zbv", []),
    "ddp": ("ddp", []),
}
NAMES = {
    "bll": "BLL, default settings",
    "bll-deep": f"**BLL**, lag, ring and in_flight {DEPTH}",
    "1f1b": f"1F1B, m = {MICROBATCHES}",
    "zbv": f"ZBV zero-bubble, m = {MICROBATCHES}",
    "ddp": "DDP",
}


@dataclass(frozen=True)
class Job:
    """One cell of the table: a row, and a link with its one-way delay in milliseconds and its rate."""

    row: str
    delay: float
    rate: str | None
    case: Case

    @property
    def name(self) -> str:
        return f"{self.row} {self.delay:g} ms" + (f" {self.rate}" if self.rate else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = parser().parse_args(arguments)
    if options.show:
        print(shown(json.loads(Path(options.show).read_text())["results"], options.brief))
        return 0
    if reason := hosts.reason_against():
        print(f"benchmarks.links: this machine has no network namespaces for it: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hosts are removed
    jobs, rates = list(jobs_of(options)), defaultdict[str, list[float]](list)
    settings = {**vars(options), "tcp": hosts.TCP}
    for name in {job.case.engine for job in jobs}:
        engine("ranks" if name == "bll" else name)  # imports torch, once for all forks
    with Bar("links", options.repeats * len(jobs), quiet=True) as bar:
        for repetition, job in product(range(options.repeats), jobs):
            rates[job.name].append(measure(job, options.seconds))
            print(f"[{repetition + 1}/{options.repeats}] {job.name}: {rates[job.name][-1]:.1f} images/s", flush=True)
            bar.advance(job.name)
            results = [cell_of(job, rates[job.name], options.seconds) for job in jobs]
            write(options.json, TITLE, settings, results)  # so that what was measured stays if the rest is not
    print(shown(results))
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.links", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument(
        "--links",
        nargs="+",
        default=["0", "20", "50", "100", "50:100mbit"],
        metavar="MS[:RATE]",
        help="one-way delay in milliseconds, and what a host may send, in the units of tc",
    )
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--milliseconds", type=float, default=120.0, help="T of a rank, a third of it forward")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a job, about, without its start")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--show", metavar="FILE", help="only print the table of these results, for a page")
    parser.add_argument("--brief", action="store_true", help="with --show: medians alone, for links without a limit")
    return parser


def jobs_of(options: argparse.Namespace) -> Iterator[Job]:
    """Every row over every link; those of one link come together."""
    for link, row in product(options.links, options.rows):
        delay, _, rate = link.partition(":")
        name, settings = ROWS[row]
        words = ["--engines", name, "--blocks", str(options.blocks), "--microbatches", str(MICROBATCHES)]
        asked = throughput.parser().parse_args([*words, "--milliseconds", str(options.milliseconds)])
        (case,) = cases(asked)
        args = next(setting for setting in case.settings if setting.startswith("model.args="))
        own = [*settings, f'{args[:-1]}, "weights": {WEIGHTS}}}']
        yield Job(row, float(delay), rate or None, replace(case, settings=[*case.settings, *own]))


def num_steps(job: Job, seconds: float) -> int:
    """Steps in about ``seconds``, at least six. Without knowing more, a schedule's step has twenty delays."""
    step = EMULATED_BATCH / (job.case.limit or 1.0)
    waits = {"bll": 0.0, "ddp": 18.0}.get(job.case.engine, 20.0) * job.delay / 1e3
    return max(6, round(seconds / (1.3 * step + waits)))


def measure(job: Job, seconds: float) -> float:
    """Images/s of one job in its steady state."""
    settings = [*job.case.settings, f"steps={num_steps(job, seconds)}"]
    settings += ["evaluate.every_epochs=never", "checkpoint.every_steps=never"]
    config = load_config(None, settings)
    number = topology(config).world_size
    with tempfile.TemporaryDirectory() as folder, network_of(job, number) as network:
        words = ["--run-dir", f"{folder}/run", *throughput.words_of(settings)]
        log = Path(folder, "log")
        ranks = [start_rank(network, rank, words, log) for rank in range(number)]
        if not all_succeed(ranks):
            raise SystemExit(f"{job.name} failed:\n{log.read_text()}")
        summary: dict[str, Any] = json.loads(Path(folder, "run", "summary.json").read_text())
    return float(summary["images_per_second"])


def network_of(job: Job, number: int) -> hosts.Network:
    """The hosts of a job, the store of which is prompt."""
    return hosts.Network(number, job.delay / 1e3, job.rate, PORT)


def start_rank(network: hosts.Network, rank: int, words: Sequence[str], log: Path) -> int:
    """A fork of this process on a host of its own; its id."""
    process = os.fork()
    if process:
        return process
    run_rank(network, rank, words, log)


def run_rank(network: hosts.Network, rank: int, words: Sequence[str], log: Path) -> NoReturn:
    code = 1
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        network.enter(rank)
        one_of = {"RANK": rank, "WORLD_SIZE": network.number, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        place = {"GROUP_RANK": rank, "MASTER_ADDR": network.address(0), "MASTER_PORT": PORT}
        become_rank({name: str(value) for name, value in {**one_of, **place}.items()})
        become_rank({"GLOO_SOCKET_IFNAME": hosts.INTERFACE})
        code = launch.main(words)
    finally:
        os._exit(code)


def all_succeed(ranks: Sequence[int]) -> bool:
    """Waits for all ranks to end; ends the others when one has failed, or after a time."""
    running, failed, end = set(ranks), False, time.monotonic() + TIMEOUT
    while running:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process in running:
            running.discard(process)
            failed = failed or status != 0
        elif not process:
            time.sleep(0.05)
        if failed or time.monotonic() > end:
            for left in running:
                os.kill(left, signal.SIGKILL)
            failed = True
    return not failed


def cell_of(job: Job, rates: Sequence[float], seconds: float) -> dict[str, Any]:
    """What is reported of a cell."""
    limit = job.case.limit
    assert limit is not None, "devices are emulated"
    return {
        "row": job.row,
        "delay_ms": job.delay,
        "rate": job.rate,
        "steps": num_steps(job, seconds),
        "settings": job.case.settings,
        "limit": limit,
        "rates": list(rates),
        "images_per_second": Spread.of(rates) if rates else None,
        "of_limit": Spread.of([rate / limit for rate in rates]) if rates else None,
    }


def shown(results: Sequence[Mapping[str, Any]], brief: bool = False) -> str:
    """The table for a page: % of the limit, median and (smallest to largest)."""
    results = [each for each in results if not (brief and (each["rate"] or each["row"] == "bll"))]
    links = list(dict.fromkeys((each["rate"], each["delay_ms"]) for each in results))
    heads = ["one-way delay", *(f"{delay:g} ms{f', {rate}' if rate else ''}" for rate, delay in links)]
    cells = {(each["row"], each["rate"], each["delay_ms"]): each["rates"] for each in results}
    limits = {each["limit"] for each in results}
    rows = [
        [NAMES[row], *(_percent(cells.get((row, *link), ()), min(limits), brief) for link in links)]
        for row in dict.fromkeys(each["row"] for each in results)
    ]
    return markdown(heads, rows)


def _percent(rates: Sequence[float], limit: float, brief: bool) -> str:
    if not rates:
        return "-"
    spread = Spread.of([100 * rate / limit for rate in rates])
    return f"{spread.median:.1f} %" if brief else f"{spread.median:.1f} % ({spread.least:.1f} to {spread.most:.1f})"


if __name__ == "__main__":
    sys.exit(main())
