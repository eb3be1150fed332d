"""Whether a run is well, by what its files say."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bllpipe import cli
from bllpipe.tools.monitoring.run_status import health_of, newest
from bllpipe.training.run_directory import RunDirectory


def a_run(folder: Path, status: str, age: float = 0.0, **facts: object) -> Path:
    """A run directory that was written to ``age`` seconds ago."""
    folder.mkdir(parents=True)
    directory = RunDirectory(folder)
    directory.checkpoints.mkdir()
    directory.write_status(status, **facts)
    directory.add_metrics({"step": 1})
    for path in (folder / "status.json", directory.metrics, directory.checkpoints):
        os.utime(path, (time.time() - age,) * 2)
    return folder


@pytest.mark.parametrize(
    ("status", "age", "is_healthy"),
    [
        ("running", 0, True),
        ("running", 59, True),
        ("running", 120, False),
        ("completed", 1e6, True),
        ("preempted", 1e6, True),
        ("failed", 0, False),
        ("singing", 0, False),
    ],
)
def test_well_is_who_makes_progress_or_has_ended_in_order(
    tmp_path: Path, status: str, age: float, is_healthy: bool
) -> None:
    assert health_of(a_run(tmp_path / "run", status, age, step=7), within=60).is_healthy is is_healthy


@pytest.mark.parametrize("name", ["status.json", "metrics.jsonl", "checkpoints"])
def test_every_file_that_is_written_is_a_sign_of_life(tmp_path: Path, name: str) -> None:
    run = a_run(tmp_path / "run", "running", age=1000)
    os.utime(run / name)
    assert health_of(run, within=60).is_healthy


def test_why(tmp_path: Path) -> None:
    failed = a_run(tmp_path / "a", "failed", step=57, reason="the loss is nan\nand more")
    assert health_of(failed, 60).reason == f"{failed}: failed, step 57: the loss is nan"
    running = a_run(tmp_path / "b", "running", age=75)
    assert health_of(running, 60).reason in {f"{running}: running, last written {age} s ago" for age in (75, 76)}
    assert health_of(tmp_path / "c", 60).reason == f"{tmp_path}/c has no status.json: no run has started there"
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "status.json").write_text("[]")
    assert not health_of(tmp_path / "d", 60).is_healthy


def test_the_newest_run_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["health"]) == 1
    assert capsys.readouterr().out == "there is no run in runs/\n"
    a_run(tmp_path / "runs" / "old", "failed", age=100)
    a_run(tmp_path / "runs" / "new", "running", age=50)
    assert newest(Path("runs")) == Path("runs/new")
    assert cli.main(["health"]) == 0
    assert cli.main(["health", "--within", "10"]) == 1
    assert cli.main(["health", "runs/old"]) == 1


def test_it_costs_next_to_nothing(tmp_path: Path) -> None:
    """A container asks every half a minute; torch would take seconds of a core each time."""
    code = "import sys; from bllpipe.tools.monitoring import run_status as health; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], timeout=60, cwd=Path(__file__).parents[4])
    assert done.returncode == 0
