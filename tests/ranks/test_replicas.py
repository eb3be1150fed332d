"""Shards of a batch: the same bits whoever computes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import jobs

TINY = ("model.width=2", "data.batch_size=32", "steps=12", "blocks=2", "feedback.lag=2", "log.every_steps=4")


def digest(run_dir: Path, *settings: str) -> str:
    return str(jobs.in_this_process(run_dir, *TINY, *settings)["state_sha256"])


@pytest.mark.ranks
@pytest.mark.parametrize("shards", [2, 4])
def test_every_engine_has_the_same_bits_for_the_same_number_of_shards(tmp_path: Path, shards: int) -> None:
    settings = f"shards={shards}", "evaluate.ensemble=true"
    expected = digest(tmp_path / "sequential", "engine=sequential", *settings)
    assert digest(tmp_path / "threads", "engine=threads", *settings) == expected
    jobs.succeed(jobs.ranks(3, jobs.words(tmp_path / "ranks", *TINY, *settings)))
    assert jobs.summary(tmp_path / "ranks")["state_sha256"] == expected


def test_another_number_of_shards_gives_other_bits_and_norm_sync_those_of_one(tmp_path: Path) -> None:
    one = digest(tmp_path / "one", "engine=sequential", "steps=3")
    assert digest(tmp_path / "two", "engine=sequential", "steps=3", "shards=2") != one
    assert digest(tmp_path / "sync", "engine=sequential", "steps=3", "shards=2", "norm=sync") == one


def test_a_whole_network_learns_from_shards_too(tmp_path: Path) -> None:
    digest(tmp_path / "bp", "engine=single", "method=bp", "steps=2", "shards=4")
