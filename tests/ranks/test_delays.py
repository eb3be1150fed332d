"""Whoever is late, whenever: the result does not change by a bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import jobs

SEEDS = ("11", "12", "13")


@pytest.mark.ranks
def test_random_delays_of_any_rank_change_nothing(tmp_path: Path) -> None:
    settings = (*jobs.SMALL, "steps=40", "feedback.lag=2")
    expected = jobs.in_this_process(tmp_path / "undelayed", "engine=sequential", *settings)["state_sha256"]
    arguments = [str(tmp_path), ",".join(SEEDS), *settings]
    jobs.succeed(jobs.ranks(5, arguments, module="tests.support.delayed_job"))
    assert {jobs.summary(tmp_path / seed)["state_sha256"] for seed in SEEDS} == {expected}
