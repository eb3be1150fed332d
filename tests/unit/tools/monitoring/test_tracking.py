"""``log.to``: what a tracker gets, and that a run is the same whatever its tracker does."""

from __future__ import annotations

import json
import os
import re
import signal
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from bllpipe.config import load_config, to_yaml
from bllpipe.errors import ConfigError
from bllpipe.launch import check_start, choose_callbacks
from bllpipe.tools.monitoring import tracking
from bllpipe.tools.monitoring.tracker_process import Lines
from bllpipe.tools.monitoring.tracking import TrackerProcess, Tracking, read_state, undelivered
from tests.support.jobs import SMALL, in_this_process, metrics
from tests.support.report_pages import line
from tests.support.trackers import RecordingTracker
from tests.support.waiting import wait_until

SETTINGS = ("engine=sequential", *SMALL, "steps=10", "blocks=2", "checkpoint.every_steps=5")
TRACKED = (*SETTINGS, "log.to=[wandb]")


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the run without a tracker."""
    return str(in_this_process(tmp_path_factory.mktemp("runs") / "plain", *SETTINGS)["state_sha256"])


def test_a_tracker_gets_every_number_the_config_and_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], untracked: str
) -> None:
    tracker = RecordingTracker(tmp_path, monkeypatch)
    summary = in_this_process(tmp_path / "small", *TRACKED)
    assert summary["state_sha256"] == untracked
    written = [each for each in metrics(tmp_path / "small") if (each["actor"], each["phase"]) == ("block 1", "train")]
    for name in ("loss", "pred", "accuracy", "lr", "alignment", "images_per_second"):
        assert tracker.curve(f"block 1/train/{name}") == [(each["step"], each[name]) for each in written], name
    assert tracker.curve("block 1/test/accuracy") == [(10, summary["test_accuracy"])]
    assert len(tracker.curve("lane 0/train/images_per_second")) == len(written)
    ((begun,),) = tracker.calls("init")
    assert begun["name"] == "small"
    assert begun["config"]["feedback.lag"] == 1
    assert "torch" in begun["config"]["machine"]
    ((code, ended),) = tracker.calls("finish")
    assert (code, ended["status"], ended["state_sha256"]) == (0, "completed", untracked)
    assert "log.to" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("conduct", "said"),
    [
        ("init blocks", "it did not end within 1 s after the run and was stopped; it has not taken 10 of 10 lines"),
        ("log blocks", "it did not end within 1 s after the run and was stopped; it has not taken 10 of 10 lines"),
        ("finish blocks", "it did not end within 1 s after the run and was stopped; it has not taken 0 of 10 lines"),
        ("init raises", "the tracker has ended (OSError: no route to the server), and the run continues without it"),
        ("log raises", "the tracker has ended (OSError: no route to the server), and the run continues without it"),
        ("init exits", "the tracker has ended (SystemExit: the library has left), and the run continues without it"),
        ("log dies", "the tracker has ended (signal 9), and the run continues without it; it has not taken N of N"),
    ],
)
def test_no_tracker_stops_a_run_or_changes_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    conduct: str,
    said: str,
    untracked: str,
) -> None:
    RecordingTracker(tmp_path, monkeypatch, conduct)
    if "blocks" in conduct:
        monkeypatch.setattr(tracking, "LAST_SECONDS", 1.0)
    run = tmp_path / "small"
    assert in_this_process(run, *TRACKED)["state_sha256"] == untracked
    wait_until(lambda: "log.to wandb: " in said_so_far(capfd, run))
    # a tracker that dies while the run goes on has taken none of the lines that were there by then
    assert said in re.sub(r"\b(\d+) of \1\b", "N of N", said_so_far(capfd, run)) or said in said_so_far(capfd, run)


def test_a_run_that_is_stopped_waits_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    RecordingTracker(tmp_path, monkeypatch, "finish blocks")
    monkeypatch.setattr(tracking, "STOP_SECONDS", 0.5)
    in_this_process(tmp_path / "small", *TRACKED, "stop_at=5")
    assert "log.to wandb: it did not end within 0.5 s after the run and was stopped" in capfd.readouterr().err


def said_so_far(capfd: pytest.CaptureFixture[str], run: Path) -> str:
    """Everything that was printed to stderr since the start of the test."""
    path = run / "said.txt"
    with path.open("a") as file:
        file.write(capfd.readouterr().err)
    return path.read_text()


def test_what_a_tracker_refuses_once_it_gets_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = RecordingTracker(tmp_path, monkeypatch, "log recovers")
    in_this_process(tmp_path / "small", *TRACKED)
    assert [step for step, _ in tracker.curve("block 0/train/loss")] == [5, 10]
    assert "the server is away for a moment" in (tmp_path / "small" / "trackers" / "wandb.log").read_text()


def test_a_resumed_run_continues_that_of_the_tracker_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = RecordingTracker(tmp_path, monkeypatch)
    run = tmp_path / "small"
    in_this_process(run, *TRACKED, "stop_at=5")
    in_this_process(run, *TRACKED, options=("--resume", "auto"))
    (first,), (second,) = tracker.calls("init")
    assert first["id"] == second["id"]
    assert [step for step, _ in tracker.curve("block 0/train/loss")] == [5, 10]
    assert [step for step, _ in tracker.curve("block 1/test/accuracy")] == [10]


def directory_of_a_run(path: Path) -> Path:
    path.mkdir()
    (path / "config.yaml").write_text(to_yaml(load_config(None, TRACKED)))
    (path / "status.json").write_text('{"status": "running"}')
    (path / "metrics.jsonl").write_text("".join(json.dumps(line("train", step, loss=1.0)) + "\n" for step in (5, 10)))
    return path


@pytest.mark.parametrize("status", ["failed", "running"])
def test_a_tracker_outlives_rank_0_and_learns_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """A process that is killed closes nothing itself, and may leave the status "running"."""
    tracker, run = RecordingTracker(tmp_path, monkeypatch), directory_of_a_run(tmp_path / "small")
    if not (rank_0 := os.fork()):
        TrackerProcess("wandb", run, 0)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(rank_0, 0)[1]) == -signal.SIGKILL
    (run / "status.json").write_text(json.dumps({"status": status}))
    wait_until(lambda: tracker.calls("finish"))
    assert tracker.calls("finish") == [[1, {"status": status}]]
    assert [step for step, _ in tracker.curve("block 1/train/loss")] == [5, 10]


def test_a_tracker_does_not_tell_how_a_later_attempt_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, run = RecordingTracker(tmp_path, monkeypatch), directory_of_a_run(tmp_path / "small")
    slow = TrackerProcess("wandb", run, 0)
    wait_until(lambda: tracker.calls("init"))
    next_one = TrackerProcess("wandb", run, 5)
    (run / "status.json").write_text('{"status": "completed"}')
    (run / "summary.json").write_text('{"steps": 10}')
    slow.end_of_run()
    wait_until(lambda: len(tracker.calls("finish")) == 1)
    next_one.end_of_run()
    wait_until(lambda: len(tracker.calls("finish")) == 2)
    killed, completed = tracker.calls("finish")
    assert killed == [1, {"status": "running"}]
    assert completed == [0, {"status": "completed", "steps": 10}]


def test_a_tracker_that_blocks_ends_after_rank_0_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, run = RecordingTracker(tmp_path, monkeypatch, "init blocks"), directory_of_a_run(tmp_path / "small")
    monkeypatch.setattr(tracking, "LAST_SECONDS", 0.5)
    monkeypatch.setattr(tracking, "SPARE_SECONDS", 0.5)
    process = TrackerProcess("wandb", run, 0)
    wait_until(lambda: tracker.calls("init"))
    process.end_of_run()  # as when rank 0 is killed
    assert process._process.wait() == -signal.SIGALRM


def test_a_tracker_ends_when_the_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, run = RecordingTracker(tmp_path, monkeypatch), directory_of_a_run(tmp_path / "small")
    (run / "status.json").write_text('{"status": "failed"}')
    with pytest.raises(ValueError, match="in training"), Tracking(["wandb"])._following(run, 0):
        raise ValueError("in training")
    wait_until(lambda: tracker.calls("finish"))
    assert tracker.calls("finish") == [[1, {"status": "failed"}]]


def test_a_tracker_ends_when_the_end_of_the_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script may catch the error and go on, so that its process does not end."""
    tracker, run = RecordingTracker(tmp_path, monkeypatch), directory_of_a_run(tmp_path / "small")
    callback = Tracking(["wandb"])
    with callback._following(run, 0):
        pass
    (run / "status.json").write_text('{"status": "failed"}')
    callback.on_failure(run, OSError("the summary could not be written"))
    wait_until(lambda: tracker.calls("finish"))
    assert tracker.calls("finish") == [[1, {"status": "failed"}]]


def test_a_tracker_that_cannot_be_started_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = directory_of_a_run(tmp_path / "small")
    (run / "trackers").touch()
    with Tracking(["wandb"])._following(run, 0):
        pass
    assert "log.to wandb: it cannot be started" in capfd.readouterr().err


def test_what_was_not_taken_is_counted(tmp_path: Path) -> None:
    assert undelivered(tmp_path, "wandb") == "there is no metrics.jsonl"
    run = directory_of_a_run(tmp_path / "small")
    assert read_state(run, "wandb") == {}
    assert undelivered(run, "wandb") == "it has not taken 2 of 2 lines of metrics.jsonl"
    (run / "trackers").mkdir()
    (run / "trackers" / "wandb.json").write_text('{"lines": 1}')
    assert undelivered(run, "wandb") == "it has not taken 1 of 2 lines of metrics.jsonl"


def test_lines_are_read_whole_and_in_bounded_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bllpipe.tools.monitoring.tracker_process.MAX_BYTES", 10)
    path = tmp_path / "metrics.jsonl"
    lines = Lines(path)
    assert lines.read() == []
    path.write_bytes(b"first\nsecond\nthi")
    found = []
    for _ in range(3):
        found += lines.read()
    assert found == [b"first", b"second"]
    path.write_bytes(b"first\nsecond\nthird\n")
    assert lines.read() == [b"third"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[wanb]", "log.to names the tracker 'wanb'; expected tensorboard, wandb, mlflow; did you mean 'wandb'?"),
        ("[x]", r"log.to names the tracker 'x'; expected tensorboard, wandb, mlflow$"),
        ("[wandb, wandb]", "log.to names wandb twice; use it once"),
        ("wandb", r"log.to is 'wandb' \(text\); expected a list, each text; use --set 'log.to=\[wandb\]'"),
    ],
)
def test_a_tracker_that_does_not_exist_is_refused(value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(None, [f"log.to={value}"])


@pytest.mark.parametrize("found", [None, ModuleSpec("wandb", None)], ids=["nothing", "a folder of this name"])
@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_without_its_package_one_is_told_what_to_type(
    name: str, found: ModuleSpec | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda package: found)
    config = load_config(None, [*SETTINGS, f"log.to=[{name}]"])
    with pytest.raises(ConfigError, match=rf"package {name} is not installed; use pip install 'bllpipe\[{name}\]'"):
        check_start(config, None)


def test_only_a_run_that_asks_for_trackers_has_them() -> None:
    kinds = [type(each) for each in choose_callbacks(load_config(None, TRACKED))]
    assert Tracking in kinds
    assert Tracking not in [type(each) for each in choose_callbacks(load_config(None, SETTINGS))]
