"""The paper's Table 1 next to the results of this repository, and the differences between the methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

from benchmarks import report
from benchmarks.records import Record, Sample, alike, merge
from benchmarks.table_settings import DATA_TITLES, METHOD_TITLES, PAPER

Groups = Mapping[tuple[str, str], Sequence[Record]]  # by data set and method


def show(records: Sequence[Record], markdown: bool = False) -> str:
    """A table and its differences for every size, then what a reader has to know about the records."""
    merged, notes = merge(records)
    hardware = {name: chr(ord("a") + index) for index, name in enumerate(dict.fromkeys(map(_hardware, merged)))}
    parts = []
    for size in dict.fromkeys(_size(record) for record in merged):
        groups, left_out = _group([record for record in merged if _size(record) == size], size)
        notes += left_out
        parts += [_title(size), _accuracies(groups, hardware, markdown), _differences(groups, markdown)]
    parts.append("\n".join([f"{letter}: {name}" for name, letter in hardware.items()] + notes))
    return "\n\n".join(parts)


def _title(size: str) -> str:
    return (
        f"Size {size}: test accuracy of the last block in %, mean ± sample standard deviation of n seeds.\n"
        f"The paper's figures are of ResNet-50, 3 runs."
    )


def _group(records: Sequence[Record], size: str) -> tuple[Groups, list[str]]:
    """Only what was run with the same settings is averaged."""
    groups, notes = {}, []
    for data, method in dict.fromkeys((record["data"], record["method"]) for record in records):
        members = [record for record in records if (record["data"], record["method"]) == (data, method)]
        kept, left_out = alike(members, f"{size} {data} {method}")
        groups[data, method] = sorted(kept, key=lambda record: int(record["seed"]))
        notes += left_out
    return groups, notes


def _accuracies(groups: Groups, hardware: Mapping[str, str], markdown: bool) -> str:
    data_sets = _in_order(PAPER, [data for data, _ in groups])
    methods = _in_order(METHOD_TITLES, [method for _, method in groups], always=True)
    heads = ["method"]
    for data in data_sets:
        heads += [f"{DATA_TITLES.get(data, data)}: paper", "ours", "epochs", "n", "hardware"]
    rows = [
        [
            METHOD_TITLES.get(method, method.upper()),
            *(cell for data in data_sets for cell in _cells(groups, data, method, hardware)),
        ]
        for method in methods
    ]
    return _table(heads, rows, markdown)


def _cells(groups: Groups, data: str, method: str, hardware: Mapping[str, str]) -> list[str]:
    published = PAPER.get(data, {}).get(method)
    paper = f"{published[0]:.1f} ± {published[1]:.2f}" if published else "-"
    members = groups.get((data, method))
    if not members:
        return [paper, "-", "-", "-", "-"]
    sample = _sample(members)
    letters = sorted({hardware[_hardware(record)] for record in members})
    return [paper, str(sample), f"{members[0]['epochs']:g}", str(sample.n), " ".join(letters)]


def _differences(groups: Groups, markdown: bool) -> str:
    """In percentage points: of the means with their standard error, and seed by seed."""
    rows = [
        _difference(groups, data, other)
        for data in _in_order(PAPER, [data for data, _ in groups])
        for other in ("bp", "dgl")
        if (data, "bll") in groups and (data, other) in groups
    ]
    heads = ["difference", "data", "paper", "of means", "standard error", "paired", "standard error", "by seed"]
    return _table(heads, rows, markdown) if rows else "no differences: they need BLL, and BP or DGL, on the same data"


def _difference(groups: Groups, data: str, other: str) -> list[str]:
    ours, theirs = _sample(groups[data, "bll"]), _sample(groups[data, other])
    by_seed = _by_seed(groups[data, "bll"], groups[data, other])
    paired = Sample.of(list(by_seed.values())) if by_seed else None
    published = PAPER.get(data, {})
    return [
        f"BLL - {METHOD_TITLES[other]}",
        DATA_TITLES.get(data, data),
        f"{published['bll'][0] - published[other][0]:+.1f}" if other in published else "-",
        f"{ours.mean - theirs.mean:+.2f}",
        _or_dash(None if ours.error is None or theirs.error is None else sqrt(ours.error**2 + theirs.error**2)),
        f"{paired.mean:+.2f}" if paired else "-",
        _or_dash(paired.error if paired else None),
        " ".join(f"{difference:+.2f}" for difference in by_seed.values()) or "-",
    ]


def _by_seed(ours: Sequence[Record], theirs: Sequence[Record]) -> dict[int, float]:
    """Differences in percentage points for the seeds that both have."""
    other = {record["seed"]: record["test_accuracy"] for record in theirs}
    common = [record for record in ours if record["seed"] in other]
    return {record["seed"]: 100 * (record["test_accuracy"] - other[record["seed"]]) for record in common}


def _sample(records: Sequence[Record]) -> Sample:
    return Sample.of([100 * record["test_accuracy"] for record in records])


def _size(record: Record) -> str:
    return str(record.get("size", "other"))


def _hardware(record: Record) -> str:
    """GPUs, or else the processor, with the version of torch and how many runs shared it."""
    environment = record["environment"]
    gpus = [f"{environment['gpus'].count(name)} x {name}" for name in dict.fromkeys(environment["gpus"])]
    device = ", ".join(gpus) or f"{environment['cpus']} CPUs of {environment['processor']}"
    return f"{device}, torch {environment['torch']}, {record['workers']} run(s) at a time"


def _in_order(known: Mapping[str, object], found: Sequence[str], always: bool = False) -> list[str]:
    """Those found in the order of ``known`` (``always``: all of that), then the others as they come."""
    first = [name for name in known if always or name in found]
    return first + [name for name in dict.fromkeys(found) if name not in known]


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> str:
    return (report.markdown if markdown else report.table)(heads, rows)
