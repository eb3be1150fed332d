"""``--output json`` and ``quiet``: what programs read is what docs/terminal.md says, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bllpipe import cli

DOCS = Path(__file__).parents[3] / "docs" / "terminal.md"


def train(folder: Path, output: str, *more: str) -> int:
    sets = ("blocks=2", "model.width=4", "engine=sequential", "log.every_steps=2", "log.plain_seconds=0.1")
    words = [word for key in (*sets, "steps=90") for word in ("--set", key)]
    return cli.main(["train", "--run-dir", str(folder), "--output", output, *words, *more])


def objects(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Every line of the standard output."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def documented(name: str) -> set[str]:
    """The fields that the line of the docs which begins with ``name`` names."""
    section = DOCS.read_text().partition("## JSON")[2].partition("\n## ")[0]
    (row,) = [line for line in section.splitlines() if line.startswith(f"| {name} |")]
    return set(re.findall("`([a-z_]+)`", row.removeprefix(f"| {name} |")))


def test_every_line_of_json_is_an_object_as_documented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "json", "--set", "stop_at=45") == 0
    *progress, end = objects(capsys)
    assert progress
    assert end.keys() == documented("end")
    assert end["summary"] == json.loads((tmp_path / "run" / "summary.json").read_text())
    for line in progress:
        assert line.keys() == documented("progress")
        assert all(rank.keys() == documented("each of `ranks`") for rank in line["ranks"])
    assert train(tmp_path / "run", "json", "--resume", "auto") == 0
    first, *_, last = objects(capsys)
    assert first.keys() == documented("going on")
    assert first["goes_on_from"] == 45
    assert last["summary"]["steps"] == 90
    assert train(tmp_path / "run", "json", "--resume", "auto") == 0  # nothing is left
    assert objects(capsys) == [last]


def test_quiet_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in (("--set", "stop_at=45"), ("--resume", "auto")):
        assert train(tmp_path / "run", "quiet", *more) == 0
        captured = capsys.readouterr()
        assert re.fullmatch(r"test accuracy .* after \d+ steps .*\n", captured.out)
        assert captured.err == ""
