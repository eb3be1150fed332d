"""A report of runs that are unfinished, torn or hostile, and what is said of directories that hold no run."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from bllpipe.errors import ConfigError
from bllpipe.tools.analysis.report import write_report
from tests.support.jobs import summary
from tests.support.report_pages import line, made_by_hand, report


def test_a_run_that_only_began_has_a_report(tmp_path: Path) -> None:
    run = made_by_hand(tmp_path / "young")
    for name in ("summary.json", "metrics.jsonl", "env.json", "status.json"):
        (run / name).unlink()
    found = report([run], tmp_path / "report.html")
    assert found.column("accuracy", "mean") == ["no finished run"]
    assert found.column("runs", "status") == ["unknown"]
    assert [note.removeprefix("young: ") for note in found.words["li"]] == [
        "there is no env.json",
        "there is no status.json",
        "there is no summary.json",
        "there is no metrics.jsonl, so it has no curves",
    ]
    assert found.drawn("chart") == []


def test_an_unfinished_run_does_not_count_in_its_group(tmp_path: Path) -> None:
    runs = [made_by_hand(tmp_path / str(seed), f"seed={seed}") for seed in (7, 8)]
    (runs[1] / "summary.json").unlink()
    rows = report(runs, tmp_path / "report.html").tables["accuracy"]
    assert rows[1:] == [["bll", "75.00 %", "\N{EN DASH}", "1", "7"]]


def test_torn_and_odd_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    run = made_by_hand(
        tmp_path / "torn", lines=[line("evaluate", 10, accuracy=0.5), line("evaluate", 20, accuracy=math.nan)]
    )
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'[1]\n{"step": 1e999, "epoch": 0, "role": "block 1"}\n{"role": "block x"}\n\xff\x00{"phase": "tr')
    found = report([run], tmp_path / "report.html")
    assert "torn: metrics.jsonl: damaged lines, left out: 4 of 6 (the first is line 3)" in found.words["li"]
    assert "torn: metrics.jsonl: values that are not finite, left out of the charts: 1" in found.words["li"]
    assert not re.search(r"\bnan\b|\binf\b", found.text)
    assert "At the end: bll 50.00 %." in found.words["figcaption"][0]


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\0"])
def test_a_damaged_summary_is_left_out(tmp_path: Path, text: str) -> None:
    run = made_by_hand(tmp_path / "a")
    (run / "summary.json").write_text(text)
    assert "a: summary.json is damaged and left out" in report([run], tmp_path / "report.html").words["li"]


def test_the_summary_of_an_earlier_end_does_not_count(tmp_path: Path) -> None:
    run = made_by_hand(tmp_path / "a")
    (run / "status.json").write_text(json.dumps({"status": "failed", "step": 30, "rank": 2, "reason": "lost rank 1"}))
    found = report([run], tmp_path / "report.html")
    assert found.column("runs", "status") == ["failed at step 30, rank 2"]
    assert found.column("runs", "test accuracy") == ["\N{EN DASH}"]
    assert "a: failed: lost rank 1" in found.words["li"]
    left_out = "a: summary.json, of step 20, is left out: since then the run was resumed (failed, step 30)"
    assert left_out in found.words["li"]


def test_values_that_were_not_measured_break_nothing(tmp_path: Path) -> None:
    run = made_by_hand(tmp_path / "a")
    record = summary(run)
    record |= {
        "test_accuracy": None,
        "block_accuracy": [None, math.nan],
        "images_per_second": math.inf,
        "busy": [math.nan] * 3,
    }
    (run / "summary.json").write_text(json.dumps(record))
    found = report([run], tmp_path / "report.html")
    assert found.column("runs", "test accuracy") == found.column("runs", "images/s") == ["\N{EN DASH}"]
    assert not re.search(r"\bnan\b|\binf\b", found.text)


def test_text_of_runs_stays_text(tmp_path: Path) -> None:
    evil = "<script src=x>&'\""
    run = made_by_hand(tmp_path / "<i>a")
    (run / "status.json").write_text(json.dumps({"status": evil, "reason": evil}))
    (run / "env.json").write_text(json.dumps({"processor": evil, "gpus": [evil]}))
    found = report(
        [run, made_by_hand(tmp_path / "b", "data.name=npz", f"data.path={json.dumps(evil)}")], tmp_path / "report.html"
    )
    assert not {tag for tag, _ in found.tags} & {"script", "i"}
    assert found.column("runs", "status")[0] == evil
    assert found.column("machines", "processor")[0] == evil
    assert evil in next(row for row in found.tables["config"] if row[0] == "data.path")


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run to report on; expected at least one run directory"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(ConfigError, match="nowhere does not exist; expected a run directory with a config.yaml"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="holds notes.txt, ...; expected a run directory"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(ConfigError, match="notes.txt is a file; expected"):
        write_report([tmp_path / "notes.txt"], tmp_path / "report.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty is empty; expected"):
        write_report([tmp_path / "empty"], tmp_path / "report.html")


def test_a_page_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    run = made_by_hand(tmp_path / "a")
    with pytest.raises(ConfigError, match="cannot be written .Is a directory.; expected the name of a file"):
        write_report([run], tmp_path)
