"""Files that lie: a campaign of random damage to real checkpoints, each of which must be found, and of hostile configs,
checkpoints, data and messages, each of which must be refused.

Every case is a pure function of the seed, its family and its number, so that one that fails can be looked at again:

python -m benchmarks.chaos.files --seed 0 --only "archives" --number 17
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos.archives import archive_families
from benchmarks.chaos.cases import Families, Outcome, Trial, carry_out
from benchmarks.chaos.corruptions import Corruptions, make_run
from benchmarks.chaos.damage import DAMAGES
from benchmarks.chaos.headers import header_families
from benchmarks.chaos.images import image_families
from benchmarks.chaos.tensors import tensor_families
from benchmarks.chaos.texts import text_families
from benchmarks.report import table, write
from bllpipe.utils.console import Bar

TOGETHER = "several at once"
HOSTILE = (
    *("headers of messages", "--set", "YAML", "JSON of a checkpoint", "tensors of a checkpoint", "exported networks"),
    *("archives", "image folders"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and prints a row a family; the exit code is 1 if a promise was broken."""
    options = parser().parse_args(arguments)
    trials = [Trial(options.only, options.number)] if options.only else list(plan(options.corruptions, options.hostile))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder) / "run")
        outcomes = list(_watched(carry_out(trials, options.seed, families, Path(folder)), len(trials)))
    results = summary(outcomes)
    print(table(["family", "tried", "survived", "slowest", "memory"], [_row(result) for result in results]))
    for outcome in outcomes:
        if outcome.broken or options.only:
            print(_told(outcome, options.seed))
    seconds = time.monotonic() - started
    print(
        f"{sum(not each.broken for each in outcomes)} of {len(outcomes)} survived, seed {options.seed}, {seconds:.0f} s"
    )
    settings = {**vars(options), "seconds": round(seconds, 1), "memory": "peak of a trial, by VmHWM of its process"}
    write(options.json, __doc__.splitlines()[0], settings, results)
    return int(any(outcome.broken for outcome in outcomes))


def parser() -> argparse.ArgumentParser:
    """The options of a campaign."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.chaos.files", description=__doc__)
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--corruptions", type=int, default=1000, metavar="N", help="damaged checkpoints")
    found.add_argument("--hostile", type=int, default=1000, metavar="M", help="hostile inputs")
    found.add_argument("--only", choices=[*DAMAGES, TOGETHER, *HOSTILE], metavar="FAMILY", help="one case again")
    found.add_argument("--number", type=int, default=0, metavar="K", help="the number of that case")
    found.add_argument("--json", metavar="FILE")
    return found


def plan(corruptions: int, hostile: int) -> Iterator[Trial]:
    """Equally many trials of every family, of the first ones one more if need be."""
    for total, names in ((corruptions, [*DAMAGES, TOGETHER]), (hostile, HOSTILE)):
        for place, name in enumerate(names):
            yield from (Trial(name, number) for number in range((total + len(names) - 1 - place) // len(names)))


def families(shared: Path) -> Families:
    """All that can be tried, made in the child."""
    return {
        **Corruptions(shared / "run" / "checkpoints").families(),
        **header_families(),
        **text_families(),
        **tensor_families(),
        **archive_families(),
        **image_families(),
    }


def _watched(outcomes: Iterable[Outcome], total: int) -> Iterator[Outcome]:
    """The same, with its progress."""
    with Bar("chaos_files", total) as bar:
        for outcome in outcomes:
            yield outcome
            bar.advance(outcome.trial.family)


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A record a family, with what was broken."""
    by_family: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_family.setdefault(outcome.trial.family, []).append(outcome)
    return [
        {
            "family": family,
            "tried": len(own),
            "survived": sum(not each.broken for each in own),
            "slowest_seconds": max(each.seconds for each in own),
            "memory_bytes": max(each.bytes for each in own),
            "broken": [
                {"number": each.trial.number, "what": each.what, "why": each.broken} for each in own if each.broken
            ],
        }
        for family, own in by_family.items()
    ]


def _row(result: dict[str, Any]) -> list[object]:
    seconds, mebibytes = f"{result['slowest_seconds']:.2f} s", f"{result['memory_bytes'] >> 20} MiB"
    return [result["family"], result["tried"], result["survived"], seconds, mebibytes]


def _told(outcome: Outcome, seed: int) -> str:
    trial = outcome.trial
    again = f"python -m benchmarks.chaos.files --seed {seed} --only {trial.family!r} --number {trial.number}"
    return f"{outcome.broken or 'survived'}: {outcome.what}\n  {again}"


if __name__ == "__main__":
    sys.exit(main())
