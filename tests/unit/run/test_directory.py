"""The files of a run: whole at any moment, and without lines of steps that are done again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bllpipe.config import Config, load_config
from bllpipe.run.directory import RunDirectory, environment


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "run")
    made.begin(load_config(None, ["seed=5"]), first_step=0)
    return made


def test_the_resolved_config_can_be_run_again(directory: RunDirectory) -> None:
    assert load_config(str(directory.path / "config.yaml")) == load_config(None, ["seed=5"])


def test_the_environment_says_what_a_reader_of_figures_needs(directory: RunDirectory) -> None:
    found = json.loads((directory.path / "env.json").read_text())
    assert found.keys() >= {"bllpipe", "python", "torch", "platform", "processor", "cpus", "gpus", "git"}
    assert found == environment()


def test_metrics_are_lines_of_json(directory: RunDirectory) -> None:
    directory.add_metrics({"step": 1, "loss": 0.5})
    directory.add_metrics({"step": 2, "loss": 0.25})
    assert [json.loads(line)["loss"] for line in directory.metrics.read_text().splitlines()] == [0.5, 0.25]


def test_a_resumed_run_drops_the_lines_of_steps_that_come_again(directory: RunDirectory) -> None:
    for step in (1, 2, 3):
        directory.add_metrics({"step": step})
    with directory.metrics.open("a") as file:
        file.write('{"step": 2, "cut off in the mid')
    directory.begin(Config(), first_step=2)
    assert [json.loads(line) for line in directory.metrics.read_text().splitlines()] == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    "line", ["[1]", "{}", '{"step": "x"}', '{"step": 1}{"st', "[" * 99_999, "\\", '{"step": 1e999}']
)
def test_damaged_lines_are_no_obstacle_to_going_on(directory: RunDirectory, line: str) -> None:
    """One torn line in the middle once ended every resume in a traceback."""
    directory.metrics.write_bytes(b'{"step": 1}\n' + line.encode() + b'\n\xff\n{"step": 2}\n')
    directory.begin(Config(), first_step=2)
    assert [json.loads(line) for line in directory.metrics.read_text().splitlines()] == [{"step": 1}, {"step": 2}]


def test_a_run_that_starts_over_starts_with_no_lines(directory: RunDirectory) -> None:
    directory.add_metrics({"step": 0})
    directory.begin(Config(), first_step=0)
    assert directory.metrics.read_text() == ""


def test_status_and_summary_are_replaced_as_a_whole(directory: RunDirectory) -> None:
    directory.write_status("running", step=0)
    directory.write_status("failed", rank=2, role="block 2", reason="why")
    directory.write_summary({"steps": 3})
    status = json.loads((directory.path / "status.json").read_text())
    assert {key: status[key] for key in ("status", "rank", "role", "reason")} == {
        "status": "failed",
        "rank": 2,
        "role": "block 2",
        "reason": "why",
    }
    assert "step" not in status
    assert json.loads((directory.path / "summary.json").read_text()) == {"steps": 3}
    assert [path.name for path in directory.path.iterdir() if path.name.startswith(".")] == [], "no part is left over"
