"""A tracker follows all ranks of a run through a kill and a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import jobs
from tests.support.trackers import RecordingTracker

pytestmark = pytest.mark.ranks
SETTINGS = (*jobs.SMALL, "blocks=2", "steps=15", "checkpoint.every_steps=5", "evaluate.every_epochs=0")


def test_a_tracker_follows_all_ranks_and_continues_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, run = RecordingTracker(tmp_path, monkeypatch), tmp_path / "tracked"
    words, path = jobs.words(run, *SETTINGS, "log.to=[wandb]"), tracker.path
    fault = "rank=1,step=12,point=update,action=kill"
    killed_run = jobs.ranks(3, words, PYTHONPATH=path, BLLPIPE_FAULT=fault, BLLPIPE_ALLOW_FAULTS="1")
    assert killed_run.returncode != 0
    jobs.succeed(jobs.ranks(3, [*words, "--resume", "auto"], PYTHONPATH=path))
    (first,), (second,) = tracker.calls("init")
    assert first["id"] == second["id"]
    for name in ("block 0/train/loss", "block 1/train/loss", "lane 1/train/images_per_second"):
        assert [step for step, _ in tracker.curve(name)] == [5, 10, 15], name
    (code, killed), (last_code, completed) = tracker.calls("finish")
    assert (code, killed["status"] in ("failed", "running")) == (1, True)
    assert (last_code, completed["status"]) == (0, "completed")
    alone = jobs.in_this_process(tmp_path / "alone", "engine=sequential", *SETTINGS)
    assert completed["state_sha256"] == alone["state_sha256"]
