"""Jobs on disks that are full, read-only or under a quota: one message and no traceback, the last checkpoint is whole,
and the run that goes on from it ends as if nothing had been."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bllpipe import launch
from bllpipe.checkpoint import open_checkpoint
from bllpipe.errors import OutputError
from tests.support import jobs
from tests.support.disks import small_disk

# Two checkpoints fit into a mebibyte, three do not.
SETTINGS = (
    *("model.width=4", "data.batch_size=32", "data.name=synthetic", "data.synthetic_images=128", "data.image_size=8"),
    *("blocks=2", "steps=12", "checkpoint.every_steps=2", "log.every_steps=1"),
)
HERE = (*SETTINGS, "engine=sequential")
MEBIBYTE = 1024
AUTO = ("--resume", "auto")


def run(run_dir: Path, *settings: str, options: tuple[str, ...] = ()) -> int:
    return launch.main(jobs.words(run_dir, *settings, options=options))


def trained(run_dir: Path) -> list[tuple[str, int]]:
    """Which lines of metrics there are."""
    return sorted((line["actor"], line["step"]) for line in jobs.metrics(run_dir) if line["phase"] == "train")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbs."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    jobs.in_this_process(run_dir, *HERE)
    return run_dir


def assert_goes_on_like(straight: Path, run_dir: Path, *settings: str) -> None:
    assert run(run_dir, *HERE, *settings, options=AUTO) == 0
    assert jobs.summary(run_dir)["state_sha256"] == jobs.summary(straight)["state_sha256"]
    assert trained(run_dir) == trained(straight)


def test_a_full_disk_ends_the_run_and_with_room_it_goes_on(
    tmp_path: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", MEBIBYTE) as disk:
        run_dir = disk.path / "run"
        assert run(run_dir, *HERE) == OutputError.exit_code
        first, *others = capsys.readouterr().err.splitlines()
        assert first.startswith("bllpipe: rank 0 (the only process): rank 1 cannot write the checkpoint of step 6 (")
        assert "No space left on device" in first and " bytes are free there; the checkpoints before it are " in first
        assert first.endswith("untouched; free space or fix the directory, and resume with --resume auto")
        assert all(
            line.startswith("bllpipe: rank 0 (the only process): and cannot write the status") for line in others
        )
        assert open_checkpoint(run_dir).step == 4
        disk.remount("size=8m")
        assert_goes_on_like(straight, run_dir)


def test_a_run_that_may_go_on_without_checkpoints_ends_badly_only_without_the_last_one(
    tmp_path: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", MEBIBYTE) as disk:
        run_dir, lenient = disk.path / "run", "checkpoint.if_unwritable=go_on"
        assert run(run_dir, *HERE, lenient) == OutputError.exit_code
        text = capsys.readouterr().err
        assert text.count("the run goes on without (checkpoint.if_unwritable: go_on), and tries the next one") == 1
        assert "the last checkpoint, of step 12, is not written: rank 1 cannot write" in text
        assert [path.name for path in (run_dir / "checkpoints").iterdir() if "partial" in path.name] == []
        assert open_checkpoint(run_dir).step == 4 and trained(run_dir)[-1][1] == 12
        disk.remount("size=8m")
        assert_goes_on_like(straight, run_dir, lenient)


@pytest.mark.parametrize("policy", ["fail", "go_on"])
def test_metrics_that_cannot_be_written(
    tmp_path: Path, straight: Path, capsys: pytest.CaptureFixture[str], policy: str
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").symlink_to("/dev/full")
    assert run(run_dir, *HERE, f"log.if_unwritable={policy}") == (OutputError.exit_code if policy == "fail" else 0)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot write metrics to {run_dir}/metrics.jsonl: No space left on device; " in line
    status = jobs.read_json(run_dir / "status.json")
    if policy == "fail":
        assert (status["status"], status["step"]) == ("failed", 0) and line.endswith("resume with --resume auto")
    else:
        assert status["status"] == "completed" and line.endswith("the run goes on without (log.if_unwritable: go_on)")
        assert jobs.summary(run_dir)["state_sha256"] == jobs.summary(straight)["state_sha256"]


@pytest.mark.parametrize("policy", ["fail", "go_on"])
def test_spans_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "spans").write_text("in the way")
    expected = OutputError.exit_code if policy == "fail" else 0
    assert run(run_dir, *HERE, "trace.num_steps=2", f"log.if_unwritable={policy}") == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot write spans to {run_dir}/spans/rank-" in line


def test_a_summary_that_cannot_be_written_is_printed_and_written_when_the_run_goes_on(
    tmp_path: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "summary.json").mkdir(parents=True)
    assert run(run_dir, *HERE) == OutputError.exit_code
    printed = capsys.readouterr()
    assert jobs.summary(straight)["state_sha256"] in printed.out and "cannot write the summary to " in printed.err
    assert jobs.read_json(run_dir / "status.json")["status"] == "failed"
    (run_dir / "summary.json").rmdir()
    assert_goes_on_like(straight, run_dir)
    assert jobs.summary(run_dir)["test_accuracy"] == jobs.summary(straight)["test_accuracy"]
    assert jobs.read_json(run_dir / "status.json")["status"] == "completed"


def test_a_run_directory_whose_place_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("in the way")
    assert run(tmp_path / "run", *HERE) == OutputError.exit_code
    first, *_ = capsys.readouterr().err.splitlines()
    assert "cannot write the run's files to " in first and "Not a directory" in first


def test_a_run_directory_that_is_read_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", 8 * MEBIBYTE) as disk:
        assert run(disk.path / "run", *HERE, "stop_at=4") == 0
        disk.remount("ro")
        capsys.readouterr()
        assert run(disk.path / "run", *HERE, options=AUTO) == OutputError.exit_code
        text = capsys.readouterr().err
        assert "Read-only file system" in text and "Traceback" not in text
        assert jobs.read_json(disk.path / "run" / "status.json")["status"] == "preempted", "as it was"
        disk.remount("rw")
        assert run(disk.path / "run", *HERE, options=AUTO) == 0


def test_a_quota(tmp_path: Path) -> None:
    """The system refuses this process files of more than 100 kB."""
    command = [sys.executable, "-m", "bllpipe.launch", *jobs.words(tmp_path / "run", *HERE)]
    limit = (100_000, 100_000)
    done = subprocess.run(
        command,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(jobs.REPOSITORY)},
    )
    assert done.returncode == OutputError.exit_code and "Traceback" not in done.stderr
    assert "cannot write the checkpoint of step 2 (" in done.stderr and "File too large" in done.stderr
    status = jobs.read_json(tmp_path / "run" / "status.json")
    assert (status["status"], status["step"]) == ("failed", 2) and "File too large" in status["reason"]


@pytest.mark.ranks
@pytest.mark.parametrize("policy", ["fail", "go_on"])
def test_all_ranks_on_a_full_disk(tmp_path: Path, straight: Path, policy: Any) -> None:
    settings = (*SETTINGS, "engine=ranks", f"checkpoint.if_unwritable={policy}", "backend.timeout_seconds=60")
    with small_disk(tmp_path / "disk", MEBIBYTE) as disk:
        run_dir = disk.path / "run"
        done = jobs.ranks(3, jobs.words(run_dir, *settings))
        assert done.returncode != 0 and "fault in bllpipe" not in done.stderr
        told = [line for line in done.stderr.splitlines() if line.startswith("bllpipe: ")]
        failed = [line for line in told if "resume with --resume auto" in line]
        assert len(failed) == 1 and "No space left on device" in failed[0]
        if policy == "go_on":
            assert sum("the run goes on without" in line for line in told) == 1
            assert "the last checkpoint, of step 12, is not written" in failed[0]
        assert open_checkpoint(run_dir).step == 4
        disk.remount("size=8m")
        assert_goes_on_like(straight, run_dir)
