"""What every benchmark prints and writes: a table, and JSON with environment, n, median and spread."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bllpipe.training.run_directory import environment
from bllpipe.utils.files import atomic_write


@dataclass(frozen=True)
class Timing:
    """Seconds of ``n`` repetitions: their median and the quartiles around it."""

    n: int
    median: float
    lower_quartile: float
    upper_quartile: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        lower, _, upper = quantiles(seconds, n=4)
        return cls(len(seconds), median(seconds), lower, upper)

    def __str__(self) -> str:
        low, middle, high = (1e3 * value for value in (self.lower_quartile, self.median, self.upper_quartile))
        return f"{middle:.3f} ms ({low:.3f} to {high:.3f})"


@dataclass(frozen=True)
class Spread:
    """The median of ``n`` repetitions, in any unit, with the smallest and the largest of them."""

    n: int
    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(len(values), median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.1f} ({self.least:.1f} to {self.most:.1f})"


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; the first is flush left, the others flush right."""
    cells = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def markdown(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The same for a page of documentation."""
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def write(
    path: str | None,
    title: str,
    settings: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    surroundings: Mapping[str, Any] | None = None,
) -> None:
    """Writes the results to ``path``, if one is given, whole or not at all; timings as their fields, in seconds.
    ``surroundings`` is the environment, unless it is that of this process."""
    if path is None:
        return
    plain = [
        {name: asdict(value) if isinstance(value, Timing | Spread) else value for name, value in result.items()}
        for result in results
    ]
    kept = {name: value for name, value in settings.items() if name != "json"}  # no path of this machine
    record: dict[str, Any] = {"benchmark": title, "settings": kept, "results": plain}
    record["environment"] = environment() if surroundings is None else dict(surroundings)
    atomic_write(Path(path), json.dumps(record, indent=1) + "\n")
