"""Kill -9 again and again: does every run end in the same weights and the same metrics as one that nobody disturbs?

A trial is one run, killed several times: at chosen points of chosen steps, or at any moment, one rank or the launcher
with all of them; and gone on with by torchrun, by bllpipe's own launcher, or by hand.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.chaos.trials import BLOCKS, Outcome, Trial, carry_out, undisturbed
from benchmarks.report import table, write
from bllpipe.utils.console import Bar

MOST_KILLS = 4  # a trial


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and prints the table; 1 when a run did not survive, or is another one."""
    options = parser().parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        references = {blocks: undisturbed(Path(folder), blocks) for blocks in BLOCKS}
        run = partial(carry_out, references=references, folder=Path(folder))
        planned = trials(options)
        with ThreadPoolExecutor(options.workers) as pool, Bar("chaos", len(planned)) as bar:
            outcomes = [_told(outcome, bar) for outcome in pool.map(run, planned)]
    rows = results(outcomes)
    print(table(HEADS, [[row[head] for head in HEADS] for row in rows]))
    print(f"seed {options.seed}, {len(outcomes)} runs, {time.monotonic() - began:.0f} s")
    write(options.json, __doc__.splitlines()[0], vars(options), rows)
    return int(any(row["killed"] != row["bit-identical"] for row in rows))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many are planned; some come when all is over")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--json", metavar="FILE")
    return parser


def trials(options: argparse.Namespace) -> list[Trial]:
    """As many as have the kills together; the same for the same seed."""
    draws = random.Random(options.seed)  # noqa: S311
    found: list[Trial] = []
    left = options.kills
    while left > 0:
        found.append(Trial.draw(len(found), min(left, draws.randint(1, MOST_KILLS)), draws))
        left -= len(found[-1].kills)
    return found


def _told(outcome: Outcome, bar: Bar) -> Outcome:
    """Says how one ended as soon as it has."""
    trial = outcome.trial
    how = "the same bits" if outcome.is_identical else "OTHER BITS" if outcome.survived else "DID NOT SURVIVE"
    print(f"run {trial.number}, by {trial.starter}: {', '.join(outcome.killed) or 'not killed'}: {how}", flush=True)
    if not outcome.is_identical:
        print(f"{trial}\n{outcome.text[-3000:]}", flush=True)
    bar.advance(f"run {trial.number}")
    return outcome


HEADS = ["kill", "killed", "survived", "bit-identical"]


def results(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row a kind of kill, and one for each way to go on. A run counts for all that it went through."""
    counts: dict[str, Counter[str]] = {head: Counter() for head in HEADS[1:]}
    for outcome in outcomes:
        for name in [*outcome.killed, *[f"restarted by {outcome.trial.starter}"] * len(outcome.killed), "all"]:
            number = len(outcome.killed) if name == "all" else 1
            counts["killed"][name] += number
            counts["survived"][name] += number * outcome.survived
            counts["bit-identical"][name] += number * outcome.is_identical
    names = sorted(counts["killed"], key=lambda name: (name == "all", name.startswith("restarted"), name))
    return [{"kill": name, **{head: counts[head][name] for head in HEADS[1:]}} for name in names]
