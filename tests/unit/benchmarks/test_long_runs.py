"""What is read off long runs: trends by hand, times to an accuracy, and that their jobs can run."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from benchmarks import time_to_accuracy
from benchmarks.endurance import trends
from benchmarks.throughput_cases import EMULATED_BATCH
from bllpipe.config import load_config


def line(step: int, milliseconds: float, mebibytes: float, actor: str = "block 0") -> dict[str, Any]:
    rate, memory = EMULATED_BATCH / (milliseconds / 1e3), int(mebibytes * 2**20)
    return {"rank": 0, "actor": actor, "step": step, "images_per_second": rate, "resident_bytes": memory}


def test_a_trend_is_the_change_from_the_warm_up_to_the_end() -> None:
    lines = [line(100, 50.0, 10.0)] + [line(100 * k, 2.0 + 0.1 * k, 300.0) for k in range(2, 11)]
    (found,) = trends(lines, steps=1000)
    assert (found["n"], found["step_seconds"]) == (9, pytest.approx(0.0026)), "the first tenth warms up"
    assert found["step_change"] == pytest.approx(0.8 / 2.6)
    assert found["resident_change"] == pytest.approx(0.0)


def test_every_block_and_lane_has_its_own_trend() -> None:
    lines = [
        line(100 * k, 2.0, 300.0 + k * growth, actor) for actor, growth in (("a", 0), ("b", 3)) for k in range(2, 11)
    ]
    steady, growing = trends(lines, steps=1000)
    assert steady["resident_change"] == 0 and growing["resident_change"] == pytest.approx(24 / 318)


def test_the_time_to_a_mark_is_that_of_the_first_test_that_reaches_it() -> None:
    runs = [
        [{"seconds": 10.0, "accuracy": 0.5}, {"seconds": 20.0, "accuracy": 0.7}, {"seconds": 30.0, "accuracy": 0.6}],
        [{"seconds": 12.0, "accuracy": 0.5}, {"seconds": 24.0, "accuracy": 0.55}],
    ]
    found = time_to_accuracy.result("bll", runs, target=0.6)
    assert (found["seconds_to_mark"].median, found["num_reached"], found["num_runs"]) == (20.0, 1, 2)
    assert (found["seconds"].median, found["accuracy"].most) == (27.0, 60.0)
    assert time_to_accuracy.result("bll", runs, target=0.9)["seconds_to_mark"] is None


@pytest.mark.parametrize("engine", time_to_accuracy.ENGINES)
def test_every_run_is_a_config_that_can_run(engine: str) -> None:
    options = argparse.Namespace(
        epochs=2, data_path="some where.npz", blocks="[layer2.1]", microbatches=4, precision="bf16"
    )
    config = load_config(time_to_accuracy.CONFIG, time_to_accuracy.settings_of(options, engine, seed=3))
    assert (config.seed, config.epochs, config.data.path) == (3, 2, "some where.npz")
    assert config.precision.compute == "bf16"
    assert config.method == time_to_accuracy.LOCAL.get(engine, {"method": "bp"})["method"]
