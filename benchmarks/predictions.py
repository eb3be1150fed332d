"""Compares the predictions of bllpipe plan with measurements of emulated devices.

The measurements are those of benchmarks.throughput --work emulated --json.
The overhead of an operation is derived from one case, the pipeline with the fewest microbatches; all other cases are
predicted with this overhead, and without one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import table, write
from benchmarks.throughput_cases import Work, predicted_rate, rank_seconds

PRECISION = 1e-6  # seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and prints a row a case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictions", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    record = json.loads(options.file.read_text())
    overhead, results = check(record["results"], record["settings"]["milliseconds"] / 1e3)
    print(table(["case", "images/s", "no overhead", "with overhead"], [_row(each) for each in results]))
    print(f"overhead of an operation: {1e3 * overhead:.2f} ms, derived from the case marked *")
    write(options.json, __doc__.splitlines()[0], {"file": options.file.name, "overhead": overhead}, results)
    return 0


def check(results: Sequence[Mapping[str, Any]], seconds: float) -> tuple[float, list[dict[str, Any]]]:
    """The overhead of an operation in seconds, and both predictions of every case that bllpipe plan can simulate."""
    known = [each for each in results if not each["jitter"] and _predict(each, seconds, 0.0)]
    teacher = min((each for each in known if each["microbatches"]), key=lambda each: int(each["microbatches"]))
    overhead = overhead_of(teacher, seconds)
    return overhead, [
        {
            "case": each["case"],
            "images_per_second": each["images_per_second"]["median"],
            "error_without_overhead": _error(each, seconds, 0.0),
            "error": _error(each, seconds, overhead),
            "taught": each is teacher,
        }
        for each in known
    ]


def overhead_of(result: Mapping[str, Any], seconds: float) -> float:
    """The overhead with which the prediction is right, by bisection."""
    low, high = 0.0, seconds
    while high - low > PRECISION:
        middle = (low + high) / 2
        if _error(result, seconds, middle) > 0:
            low = middle
        else:
            high = middle
    return low


def _error(result: Mapping[str, Any], seconds: float, overhead: float) -> float:
    """Predicted over measured, less 1."""
    predicted = _predict(result, seconds, overhead)
    assert predicted is not None, "only such cases are checked"
    return float(predicted / result["images_per_second"]["median"] - 1)


def _predict(result: Mapping[str, Any], seconds: float, overhead: float) -> float | None:
    work = Work("emulated", result["ranks"], result["slow"])
    return predicted_rate(result["engine"], result["microbatches"], rank_seconds(work, seconds), overhead)


def _row(result: Mapping[str, Any]) -> list[object]:
    errors = [f"{100 * result[key]:+.1f} %" for key in ("error_without_overhead", "error")]
    return [result["case"] + (" *" if result["taught"] else ""), f"{result['images_per_second']:.1f}", *errors]


if __name__ == "__main__":
    sys.exit(main())
