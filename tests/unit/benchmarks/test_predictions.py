"""What bllpipe plan says of emulated devices, against cases whose overhead is known."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.predictions import check
from benchmarks.throughput_cases import predicted_rate

SECONDS, OVERHEAD = 0.24, 0.002


def measured(engine: str, microbatches: int | None, jitter: float = 0.0) -> dict[str, Any]:
    """A case that takes exactly as long as its operations and their overheads."""
    rate = predicted_rate(engine, microbatches, [SECONDS] * 4, OVERHEAD)
    facts = {"case": f"{engine} {microbatches}", "engine": engine, "microbatches": microbatches, "ranks": 4}
    return {**facts, "slow": 1.0, "jitter": jitter, "images_per_second": {"median": rate or 1.0}}


def test_the_overhead_of_one_case_explains_the_others() -> None:
    cases = [measured("bll", None), measured("gpipe", 8), measured("1f1b", 4), measured("1f1b", 16)]
    overhead, found = check([*cases, measured("zbv", 8), measured("bll", None, jitter=0.2)], SECONDS)
    assert overhead == pytest.approx(OVERHEAD, abs=2e-6)
    assert [each["case"] for each in found] == ["bll None", "gpipe 8", "1f1b 4", "1f1b 16"]
    assert [each["taught"] for each in found] == [False, False, True, False]
    assert all(abs(each["error"]) < 1e-3 < each["error_without_overhead"] for each in found)


def test_an_operation_costs_a_step_of_1f1b_one_overhead_a_slot() -> None:
    """m + p - 1 slots of a forward and a backward each."""
    rate = predicted_rate("1f1b", 8, [SECONDS] * 4, OVERHEAD)
    assert rate == pytest.approx(32 / (11 * (SECONDS / 8 + 2 * OVERHEAD)))
