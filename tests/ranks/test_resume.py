"""A run that was stopped and goes on ends where an undisturbed one ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from bllpipe import launch
from tests.support import jobs

STEPS = 9
SHORT = (*jobs.SMALL, "engine=sequential", "data.name=synthetic", "data.synthetic_images=128", "data.image_size=8")


def short(run_dir: Path, *settings: str, resume: str = "never") -> dict[str, object]:
    return jobs.in_this_process(run_dir, *SHORT, f"steps={STEPS}", *settings, options=("--resume", resume))


@pytest.mark.parametrize("lag", [1, 3])
@pytest.mark.parametrize("update", ["closed_form", "sgd"])
def test_stopping_after_any_step_changes_nothing(tmp_path: Path, lag: int, update: str) -> None:
    feedback = (*jobs.TINY, "data.synthetic_images=128", f"feedback.lag={lag}", f"feedback.update={update}")
    straight = short(tmp_path / "straight", *feedback)
    for stop in range(1, STEPS):
        run_dir = tmp_path / f"stop-{stop}"
        stopped = short(run_dir, *feedback, f"stop_at={stop}")
        assert stopped["steps"] == stop
        assert jobs.read_json(run_dir / "status.json")["status"] == "preempted"
        resumed = short(run_dir, *feedback, resume="auto")
        assert resumed["state_sha256"] == straight["state_sha256"], f"stopped after step {stop}"
        assert resumed["test_accuracy"] == straight["test_accuracy"]
        assert jobs.read_json(run_dir / "status.json")["status"] == "completed"


def test_a_run_can_be_stopped_many_times_and_change_its_engine(tmp_path: Path) -> None:
    straight = short(tmp_path / "straight")
    for stop, engine in ((2, "threads"), (3, "sequential"), (7, "threads")):
        short(tmp_path / "stopped", f"stop_at={stop}", f"engine={engine}", resume="auto")
    assert short(tmp_path / "stopped", resume="auto")["state_sha256"] == straight["state_sha256"]


def test_metrics_have_every_step_once(tmp_path: Path) -> None:
    short(tmp_path / "run", "stop_at=4", "log.every_steps=1", "checkpoint.every_steps=3")
    assert launch.main(jobs.words(tmp_path / "run", *SHORT, "steps=9", "log.every_steps=1", options=AUTO)) == 0
    lines = jobs.metrics(tmp_path / "run")
    seen = [(line["actor"], line["step"]) for line in lines if line["phase"] == "train"]
    assert len(seen) == len(set(seen)) == 9 * 8, "four blocks and four lanes"


AUTO = ("--resume", "auto")


def test_a_complete_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = short(tmp_path / "run")
    assert short(tmp_path / "run", resume="auto") == before
    assert "is complete: step 9 of 9" in capsys.readouterr().out


def test_another_configuration_is_refused_key_by_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short(tmp_path / "run", "stop_at=3")
    words = jobs.words(tmp_path / "run", *SHORT, f"steps={STEPS}", "optimizer.lr=0.5", "seed=3", options=AUTO)
    assert launch.main(words) == 2
    text = capsys.readouterr().err
    assert "optimizer.lr: 0.05 then, 0.5 now" in text
    assert "seed: 0 then, 3 now" in text
    assert "log." not in text


def test_a_directory_that_holds_a_run_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short(tmp_path / "run")
    assert launch.main(jobs.words(tmp_path / "run", *SHORT, "steps=3")) == 2
    assert "holds a run already; add --resume auto" in capsys.readouterr().err


@pytest.mark.ranks
def test_ranks_go_on_where_they_stopped(tmp_path: Path) -> None:
    settings = (*jobs.SMALL, "steps=50")
    straight = jobs.in_this_process(tmp_path / "straight", *settings, "engine=sequential")
    jobs.succeed(jobs.ranks(5, jobs.words(tmp_path / "run", *settings, "stop_at=31")))
    assert jobs.summary(tmp_path / "run")["steps"] == 31
    jobs.succeed(jobs.ranks(5, jobs.words(tmp_path / "run", *settings, options=AUTO)))
    assert jobs.summary(tmp_path / "run")["state_sha256"] == straight["state_sha256"]
