"""The short form of ``make chaos``: a few random kills, and all runs end in the same bits."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.chaos import kills as chaos
from benchmarks.chaos import trials
from tests.support import forks, jobs


def test_the_same_seed_is_the_same_campaign() -> None:
    options = argparse.Namespace(kills=100, seed=3)
    found = chaos.trials(options)
    assert found == chaos.trials(options) != chaos.trials(argparse.Namespace(kills=100, seed=4))
    assert sum(len(trial.kills) for trial in found) == 100
    assert {trial.starter for trial in found} == {"torchrun", "launcher", "hand"}


@pytest.mark.ranks
def test_a_few_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "subprocess", forks.SUBPROCESS)
    monkeypatch.setattr(trials, "SETTINGS", (*jobs.UNHURRIED, "log.every_steps=7", f"steps={trials.STEPS}"))
    for module in (chaos, trials):
        monkeypatch.setattr(module, "BLOCKS", (2, 3))
    assert chaos.main(["--kills", "3", "--seed", "32", "--workers", "2", "--json", str(tmp_path / "found.json")]) == 0
    (total,) = [row for row in json.loads((tmp_path / "found.json").read_text())["results"] if row["kill"] == "all"]
    assert total["killed"] == total["survived"] == total["bit-identical"] > 0
