"""Images per second of backpropagation and of BLL on one GPU, in the engines as users have them.

Every case is a run of its own: the network in bf16, synthetic images of CIFAR's size, augmented on the device, no test
and no checkpoint. The rate is that of stretches between two lines of metrics, the first ones left out; operations are
those of products and convolutions, and the limit is the GPU's bf16 peak. BLL is compared with the fastest
engine of backpropagation, for the same network and batch. A case that fails or exceeds its time limit is reported, and
the others follow; the JSON file is rewritten after every case. When the time budget is spent, the remaining cases are
listed as left out. ``--device cpu --quick`` rehearses all of it with a tiny network; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from statistics import median

import torch

from benchmarks.gpu_cases import BATCHES, MODELS, VARIANTS, Case, Group, Scale, groups
from benchmarks.gpu_report import Ledger
from benchmarks.gpu_runs import measure, surroundings, time_without_kernel
from benchmarks.gpu_worker import Worker

NO_GPU = "there is no GPU; rehearse with --device cpu --quick"
REHEARSAL = "a rehearsal on a CPU: these figures say nothing of a GPU"
COUNTING_SECONDS = 10.0  # what counting operations may take at most, once a network and side


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and carries it out; the exit code is 1 when a case has failed."""
    options = parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    deadline = time.monotonic() + options.budget
    ledger = Ledger(options.json, vars(options))
    scale = Scale(options.device, options.quick, tuple(options.overrides), options.spoil)
    asked = groups(scale, options.models, options.batches, options.variants)
    with Worker() as worker:
        ledger.surroundings = worker.ask(surroundings, limit=60).value or {}
        compare(worker, asked, options.repeats, deadline, options.case_limit, ledger)
        if options.gaps and options.device == "cuda":
            profile_all(worker, asked, deadline, options.case_limit, ledger)
    conclude(ledger, deadline, options.device)
    return 1 if ledger.failed else 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny network and few steps: a rehearsal")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES), metavar="B")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=2, help="cases of a network and batch so many times, in turn")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds after which no case is begun")
    parser.add_argument("--case-limit", type=float, default=150.0, help="seconds after which a case is stopped")
    parser.add_argument("--gaps", action="store_true", help="profile every case at the end: the time without a kernel")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--spoil", metavar="TEXT", help="cases whose names hold it fail on purpose: a rehearsal")
    parser.add_argument("--json", metavar="FILE")
    return parser


def compare(
    worker: Worker, asked: Sequence[Group], repeats: int, deadline: float, case_limit: float, ledger: Ledger
) -> None:
    """Measures the cases of each group in turn, ``repeats`` times, until ``deadline`` (of the monotonic clock). A case
    that has failed is not tried again, and one that is known to take longer than what is left is not begun."""
    for group in asked:
        for _ in range(repeats):
            for case in group:
                _compare_one(worker, case, deadline, case_limit, ledger)


def _compare_one(worker: Worker, case: Case, deadline: float, case_limit: float, ledger: Ledger) -> None:
    known, left = list(ledger.found.get(case, [])), deadline - time.monotonic()
    if case.name in ledger.failures:
        return
    if left <= max((each["seconds"] for each in known), default=0.0):
        ledger.left.append(f"{case.name} [{len(known) + 1}]")
        return ledger.flush()
    answer = worker.ask(measure, case, limit=min(case_limit, left))
    ledger.add(case, answer)
    result = answer.error or f"{median(answer.value['rates']):.1f} images/s"
    print(f"[{len(known) + 1}] {case.name}: {result} ({answer.seconds:.1f} s)", flush=True)


def profile_all(worker: Worker, asked: Sequence[Group], deadline: float, case_limit: float, ledger: Ledger) -> None:
    """The time without a kernel of every case that was measured, until ``deadline``."""
    for case in [case for group in asked for case in group if ledger.found.get(case)]:
        limit = min(case_limit, deadline - time.monotonic())
        if limit <= 0:
            ledger.left.append(f"{case.name} [profile]")
            continue
        answer = worker.ask(time_without_kernel, case, limit=limit)
        if answer.error is None:
            ledger.without_kernel[case] = answer.value
        else:
            ledger.add_failure(f"{case.name} [profile]", answer)
        ledger.flush()


def conclude(ledger: Ledger, deadline: float, device: str) -> None:
    """Counts operations if there is time, writes the file for the last time and prints the tables."""
    if time.monotonic() + COUNTING_SECONDS < deadline:
        ledger.count_operations()
    ledger.flush()
    print(ledger.tables(), flush=True)
    if device == "cpu":
        print(REHEARSAL, flush=True)


if __name__ == "__main__":
    sys.exit(main())
