"""What the benchmarks share: statistics and tables that can be checked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report import Timing, table, write


def test_timing_is_median_and_quartiles() -> None:
    timing = Timing.of([0.004, 0.001, 0.002, 0.003, 0.1])
    assert (timing.n, timing.median) == (5, 0.003)
    assert timing.lower_quartile == pytest.approx(0.0015)
    assert timing.upper_quartile == pytest.approx(0.052)
    assert str(timing) == "3.000 ms (1.500 to 52.000)"


def test_columns_are_aligned() -> None:
    assert table(["name", "n"], [["a", 10], ["longer", 7]]) == "name     n\na       10\nlonger   7"


def test_json_holds_results_and_environment(tmp_path: Path) -> None:
    results = [{"case": "x", "edge": Timing(3, 2.0, 1.0, 3.0)}]
    write(str(tmp_path / "out.json"), "a title", {"n": 3, "json": "a/b"}, results)
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["results"][0]["edge"] == {"n": 3, "median": 2.0, "lower_quartile": 1.0, "upper_quartile": 3.0}
    assert record["settings"] == {"n": 3}
    assert "torch" in record["environment"]
