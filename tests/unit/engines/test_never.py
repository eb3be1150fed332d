"""``evaluate.every_epochs=never`` and ``checkpoint.every_steps=never``: the same bits, without tests, without files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bllpipe
from bllpipe import cli
from bllpipe.errors import CheckpointError, ConfigError
from bllpipe.tools.analysis.finished_run import open_run
from tests.support import jobs

# a lag of 3: the statistics of the last three steps are on their way when the run ends
SETTINGS = (*jobs.SMALL, "blocks=2", "steps=12", "feedback.lag=3", "epochs=1")
NEVER = ("evaluate.every_epochs=never", "checkpoint.every_steps=never")
END_TO_END = ("engine=single", "method=bp")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With a test and a checkpoint at the end."""
    return jobs.in_this_process(tmp_path_factory.mktemp("straight") / "run", *SETTINGS, "engine=sequential")


@pytest.fixture(scope="module")
def never(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("never") / "run"
    jobs.in_this_process(run_dir, *SETTINGS, *NEVER, "engine=sequential")
    return run_dir


def check_untested(run_dir: Path) -> None:
    """Nothing of a test and nothing of a checkpoint."""
    summary = jobs.summary(run_dir)
    assert (summary["test_accuracy"], summary["block_accuracy"]) == (None, [])
    assert {line["phase"] for line in jobs.metrics(run_dir)} == {"train"}
    assert not list((run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("engine", ["sequential", "threads", "streams"])
def test_the_bits_are_those_of_a_run_with_both(tmp_path: Path, straight: dict[str, Any], engine: str) -> None:
    found = jobs.in_this_process(tmp_path / "run", *SETTINGS, *NEVER, f"engine={engine}")
    assert found["state_sha256"] == straight["state_sha256"]
    assert found["steps"] == 12
    assert jobs.read_json(tmp_path / "run" / "status.json")["status"] == "completed"
    check_untested(tmp_path / "run")


def test_the_whole_network(tmp_path: Path) -> None:
    both = jobs.in_this_process(tmp_path / "both", *SETTINGS, *END_TO_END)
    never = jobs.in_this_process(tmp_path / "never", *SETTINGS, *END_TO_END, *NEVER)
    assert both["state_sha256"] == never["state_sha256"] and both["test_accuracy"] is not None
    check_untested(tmp_path / "never")


def test_each_alone(tmp_path: Path, straight: dict[str, Any]) -> None:
    tested = jobs.in_this_process(tmp_path / "tested", *SETTINGS, NEVER[1], "engine=sequential")
    assert tested["test_accuracy"] == straight["test_accuracy"]
    assert not list((tmp_path / "tested" / "checkpoints").iterdir())
    saved = jobs.in_this_process(tmp_path / "saved", *SETTINGS, NEVER[0], "engine=sequential")
    assert saved["test_accuracy"] is None
    assert [path.name for path in (tmp_path / "saved" / "checkpoints").iterdir()] == ["step-00000012"]


@pytest.mark.parametrize(("action", "code"), [("term", 143), ("int", 130)])
def test_a_signal_stops_it_without_a_checkpoint(tmp_path: Path, action: str, code: int) -> None:
    run_dir = tmp_path / "run"
    fault = f"rank=1,step=50,point=forward,action={action}"
    settings = (*jobs.SMALL, "blocks=2", "steps=400", *NEVER, "engine=threads")
    done = jobs.forked(jobs.words(run_dir, *settings), fault=fault)
    assert done.returncode == code, done.stderr
    assert "stopping without a checkpoint (checkpoint.every_steps=never)" in done.stderr
    status = jobs.read_json(run_dir / "status.json")
    assert status["status"] == "preempted" and 0 < status["step"] < 400
    check_untested(run_dir)


def test_weights_that_are_not_finite_are_found_at_the_end(tmp_path: Path) -> None:
    """As they are in front of a checkpoint. This fault spoils a weight behind the last look at a loss."""
    fault = "rank=0,step=11,point=weights,action=nan"
    done = jobs.forked(jobs.words(tmp_path / "run", *SETTINGS, *NEVER, "engine=sequential"), fault=fault)
    assert done.returncode == 5, done.stderr
    assert "end of the run, after step 12" in done.stderr


def test_what_reads_it_copes(never: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(never), "--out", str(tmp_path / "report.html")]) == 0
    assert "not tested" in (tmp_path / "report.html").read_text()
    assert cli.main(["health", str(never)]) == 0
    assert "completed, step 12" in capsys.readouterr().out
    assert cli.main(["watch", str(never)]) == 0


def test_what_needs_more_says_so(never: Path) -> None:
    run = bllpipe.Run(never)
    assert run.block_accuracy == []
    with pytest.raises(ConfigError, match="has no test accuracy, as the run was never tested; train without stop_at"):
        _ = run.accuracy
    with pytest.raises(CheckpointError, match="holds no checkpoint; train with this run_dir first, and without"):
        run.weights()
    with pytest.raises(CheckpointError, match="trained with checkpoint.every_steps=never; train it again with --set"):
        open_run(never, warn=lambda text: None)
