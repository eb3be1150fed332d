"""Variants of an experiment at their best learning rates, compared with one of them on other seeds.

A variant whose name ends with ``-lr`` and a number is one rate of what stands before it. The rate with the highest mean
on the seeds for tuning is chosen; means, deviations and paired differences are those of the seeds for the report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from benchmarks import report
from benchmarks.records import Record, Sample, alike, merge
from bllpipe.errors import ConfigError

RATE = re.compile(r"(?P<name>.+)-lr(?P<rate>[0-9.]+)")
BySeed = Mapping[int, Record]


@dataclass(frozen=True)
class Chosen:
    """One method at its best rate: the records of the seeds for tuning and for the report, and the rates that were
    tried; ``rate`` is None where only one was."""

    name: str
    rate: str | None
    tried: tuple[str, ...]
    tuned: BySeed
    reported: BySeed


def compare(
    records: Sequence[Record], against: str, tune: Sequence[int], seeds: Sequence[int], markdown: bool = False
) -> str:
    """A line a method, in the order of the records, with its difference from ``against``; accuracies in %."""
    merged, notes = merge(records)
    found = {}
    for name, variants in _by_name(merged).items():
        found[name], left_out = _choose(name, variants, tune, seeds)
        notes += left_out
    if against not in found:
        raise ConfigError(
            f"--against {against}: expected one of {', '.join(found) or 'the methods, but there are no runs'}"
        )
    together = any("ensemble_accuracy" in record for each in found.values() for record in each.reported.values())
    heads = ["method", "rate (tried)", "tuning %", "last block %", f"minus {against}, paired (s.e.)", "blocks %"]
    rows = [[*_cells(each, found[against]), *([_together(each)] if together else [])] for each in found.values()]
    table = report.markdown if markdown else report.table
    return "\n".join([table([*heads, *(["all heads %"] if together else [])], rows), *notes])


def name_of(record: Record) -> str:
    """The method of a record: its variant without the rate."""
    variant: str = record.get("variant", record["key"])
    match = RATE.fullmatch(variant)
    return match["name"] if match else variant


def _by_name(records: Sequence[Record]) -> dict[str, dict[str | None, list[Record]]]:
    """Records by method and by rate, both in the order of the file."""
    found: dict[str, dict[str | None, list[Record]]] = {}
    for record in records:
        variant = record.get("variant", record["key"])
        match = RATE.fullmatch(variant)
        found.setdefault(name_of(record), {}).setdefault(match and match["rate"], []).append(record)
    return found


def _choose(
    name: str, variants: Mapping[str | None, list[Record]], tune: Sequence[int], seeds: Sequence[int]
) -> tuple[Chosen, list[str]]:
    """The best rate of a method, and notes on what is left out. Rates compare on the seeds that all of them have."""
    kept, notes = {}, []
    for rate, records in variants.items():
        own, left_out = alike(records, name if rate is None else f"{name}-lr{rate}")
        kept[rate] = {int(record["seed"]): record for record in own}
        notes += left_out
    tuned = {rate: {seed: own[seed] for seed in tune if seed in own} for rate, own in kept.items()}
    candidates = {rate: own for rate, own in tuned.items() if own} or kept
    if candidates is kept and len(kept) > 1:
        notes.append(f"{name}: no record of a seed for tuning; its rate is chosen by the accuracies of the report")
    most = max(len(own) for own in candidates.values())
    short = [str(rate) for rate, own in candidates.items() if len(own) < most]
    if short:
        notes.append(f"{name}: fewer seeds at rate {', '.join(short)}, which cannot be chosen")
    best = max((rate for rate, own in candidates.items() if len(own) == most), key=lambda rate: _mean(candidates[rate]))
    reported = {seed: kept[best][seed] for seed in seeds if seed in kept[best]}
    tried = tuple(rate for rate in kept if rate is not None)
    return Chosen(name, best, tried, tuned[best], reported), notes


def _mean(own: BySeed) -> float:
    return float(mean(record["test_accuracy"] for record in own.values()))


def _cells(chosen: Chosen, other: Chosen) -> list[str]:
    rate = "-" if chosen.rate is None else f"{chosen.rate} ({', '.join(chosen.tried)})"
    shared = [seed for seed in chosen.reported if seed in other.reported]
    pairs = [100 * (chosen.reported[seed]["test_accuracy"] - other.reported[seed]["test_accuracy"]) for seed in shared]
    blocks = zip(*(record["block_accuracy"] for record in chosen.reported.values()), strict=True)
    means = " ".join(f"{100 * mean(values):.1f}" for values in blocks)
    difference = "-" if not pairs or chosen.name == other.name else _difference(Sample.of(pairs))
    return [chosen.name, rate, _sample(chosen.tuned), _sample(chosen.reported), difference, means or "-"]


def _difference(sample: Sample) -> str:
    return f"{sample.mean:+.2f}" + ("" if sample.error is None else f" ({sample.error:.2f})")


def _sample(own: BySeed, key: str = "test_accuracy") -> str:
    values = [100 * record[key] for record in own.values() if key in record]
    return f"{Sample.of(values)} ({len(values)})" if values else "-"


def _together(chosen: Chosen) -> str:
    return _sample(chosen.reported, "ensemble_accuracy")
