"""The files of a run: whole at any moment, and without lines of steps that are done again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bllpipe.config import Config, load_config
from bllpipe.errors import OutputError
from bllpipe.training.run_directory import RunDirectory, environment


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


def test_damaged_lines_of_metrics_go_and_others_stay(directory: RunDirectory) -> None:
    directory.metrics.write_text('{"step": 1}\n{"st{"step": 2}\n[1]\n{"loss": 1}\n{"step": "x"}\n{"step": 2}\n')
    directory.begin(Config(), first_step=2)
    assert directory.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_test_that_is_done_again_leaves_no_line_of_the_first(directory: RunDirectory) -> None:
    for phase, step in (("train", 1), ("evaluate", 1), ("train", 2), ("evaluate", 2)):
        directory.add_metrics({"phase": phase, "step": step})
    directory.begin(Config(), first_step=2, tests_again=True)
    lines = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    assert [(line["phase"], line["step"]) for line in lines] == [("train", 1), ("evaluate", 1), ("train", 2)]


def test_metrics_that_are_no_file_are_not_read(directory: RunDirectory) -> None:
    """Reading /dev/full has no end."""
    directory.metrics.symlink_to("/dev/full")
    directory.begin(Config(), first_step=2)


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (lambda directory: directory.write_status("running"), "the status to .*status.json"),
        (lambda directory: directory.write_summary({}), "the summary to .*summary.json"),
        (lambda directory: directory.add_metrics({}), "metrics to .*metrics.jsonl"),
        (lambda directory: directory.write_spans("rank-0.jsonl", ""), "spans to .*rank-0.jsonl"),
        (lambda directory: directory.add_resume("step-1", 1, {}), "what is resumed to .*resumes.jsonl"),
        (lambda directory: directory.begin(Config(), 0), "the run's files to "),
    ],
    ids=["status", "summary", "metrics", "spans", "resumes", "begin"],
)
def test_a_place_that_is_taken_by_a_file_is_named(
    tmp_path: Path, write: Callable[[RunDirectory], None], what: str
) -> None:
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(
        OutputError, match=f"^cannot write {what}.*: (Not a directory|File exists); .* free there; free space"
    ):
        write(RunDirectory(tmp_path / "run"))


def test_without_metrics_and_spans_a_lenient_run_goes_on_but_not_without_its_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("in the way")
    directory = RunDirectory(tmp_path / "run", "go_on")
    for _ in range(3):
        directory.add_metrics({})
        directory.write_spans("rank-0.jsonl", "")
    first, second = capsys.readouterr().err.splitlines()
    assert "cannot write metrics" in first and "cannot write spans" in second
    assert all(line.endswith("the run goes on without (log.if_unwritable: go_on)") for line in (first, second))
    with pytest.raises(OutputError, match="cannot write the summary"):
        directory.write_summary({})


@pytest.mark.parametrize(
    ("summary", "status", "ended"),
    [
        ({"steps": 5}, {"status": "completed"}, True),
        ({"steps": 5}, {"status": "preempted"}, True),
        ({"steps": 5}, {"status": "running"}, False),
        ({"steps": 4}, {"status": "completed"}, False),
        (None, {"status": "completed"}, False),
        ({"steps": 5}, None, False),
    ],
)
def test_a_run_has_ended_when_summary_and_status_say_so(
    directory: RunDirectory, summary: dict[str, int] | None, status: dict[str, str] | None, ended: bool
) -> None:
    for name, record in (("summary", summary), ("status", status)):
        if record is not None:
            (directory.path / f"{name}.json").write_text(json.dumps(record))
    assert directory.has_ended(5) is ended


def test_a_damaged_summary_is_none(directory: RunDirectory) -> None:
    (directory.path / "summary.json").write_text('{"steps": 5')
    (directory.path / "status.json").write_text('{"status": "completed"}')
    assert not directory.has_ended(5)
