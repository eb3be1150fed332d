"""What finished trials leave behind: one JSON line each, compared by their settings, merged and averaged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from os import SEEK_END
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bllpipe.checkpoint.resume import HARMLESS, HARMLESS_SECTIONS
from bllpipe.errors import ConfigError

Record = Mapping[str, Any]
NEEDED = {"key", "seed", "config", "finished", "test_accuracy", "block_accuracy"}  # of every record


@dataclass(frozen=True)
class Sample:
    """Mean, sample standard deviation and standard error of ``n`` values; the latter two are None for a single one."""

    n: int
    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample:
        return cls(len(values), mean(values), stdev(values) if len(values) > 1 else None)

    @property
    def error(self) -> float | None:
        return None if self.std is None else self.std / sqrt(self.n)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


def append(path: Path, record: Record) -> None:
    """Adds one line in one write, so that a reader never sees half of it. A last line without its end gets one first,
    or the two would be one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        file.seek(max(0, file.seek(0, SEEK_END) - 1))
        is_open = file.read(1) not in (b"", b"\n")
        file.write(("\n" * is_open + json.dumps(record) + "\n").encode())


def read(path: Path) -> list[Record]:
    """All records of a file, in order."""
    if not path.exists() or path.is_dir():
        what = "is a directory" if path.exists() else "does not exist"
        raise ConfigError(f"{path} {what}; expected a file that a run with --out FILE has written")
    lines = path.read_text(errors="replace").splitlines()
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _parse(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if (
        not isinstance(record, dict)
        or not record.keys() >= NEEDED
        or not isinstance(record["config"], dict)
        or record["test_accuracy"] is None  # of a run that was never tested
    ):
        raise ConfigError(f"{where}: {line[:40]!r} is no finished trial; delete the line and run the trial again")
    return record


def merge(records: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """One record a key, the one that finished last, in the order of first appearance; notes on settings that differ."""
    merged: dict[str, Record] = {}
    notes = []
    for record in records:
        first, last = sorted((merged.get(record["key"], record), record), key=lambda either: str(either["finished"]))
        changed = differences(first["config"], last["config"])
        if changed:
            notes.append(f"{record['key']} is there twice with different settings, the later one is shown: {changed}")
        merged[record["key"]] = last
    return list(merged.values()), notes


def alike(records: Sequence[Record], name: str) -> tuple[list[Record], list[str]]:
    """Those that differ from the one that finished last in nothing but the seed; a note on each of the others."""
    last = max(records, key=lambda record: str(record["finished"]))
    changes = [differences(record["config"], {**last["config"], "seed": record["seed"]}) for record in records]
    pairs = list(zip(records, changes, strict=True))
    notes = [
        f"{record['key']} is left out of {name}, other settings: {changed}" for record, changed in pairs if changed
    ]
    return [record for record, changed in pairs if not changed], notes


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Keys of two flat configs that change what is computed, such as ``epochs: 6 then, 8 now``; empty when they agree.

    A key that only one of them has came into the schema between them, and is left out of account.
    """
    shared = [key for key in sorted(then.keys() | now.keys()) if _counts(key, then, now)]
    changed = [key for key in shared if then.get(key) != now.get(key)]
    return "; ".join(f"{key}: {then.get(key)!r} then, {now.get(key)!r} now" for key in changed)


def _counts(key: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    harmless = key in ("engine", *HARMLESS) or key.startswith(HARMLESS_SECTIONS)
    return not harmless and ((key in then and key in now) or key.startswith("model.args."))
