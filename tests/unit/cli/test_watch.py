"""``bllpipe watch``: when it ends, what it follows by default, and what it makes of a run that went on."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from bllpipe import cli
from bllpipe.config import load_config, to_yaml
from bllpipe.tools.monitoring.live_table import header, lines
from bllpipe.tools.monitoring.run_status import Follower, Row


def line(step: int, waited: float, rank: int = 1, role: str = "block 1", actor: str | None = None) -> str:
    record = {"phase": "train", "step": step, "epoch": 1, "rank": rank, "role": role, "actor": actor or role}
    edge = "alpha 0->1" if rank == 1 else "stats 0->4"
    return json.dumps({**record, "images_per_second": 640.0, "waiting": {edge: waited}}) + "\n"


def begin(path: Path, status: str = "running", silent: float = 0.0, **facts: object) -> Path:
    """A run directory that was written to so many seconds ago."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(to_yaml(load_config(None, ["steps=100", "blocks=2"])))
    (path / "status.json").write_text(json.dumps({"status": status, "step": 0, **facts}))
    (path / "metrics.jsonl").write_text(line(20, 0.5))
    for name in ("status.json", "metrics.jsonl"):
        os.utime(path / name, (time.time() - silent,) * 2)
    return path


def rows(path: Path) -> list[Row]:
    follower = Follower(path)
    follower.refresh()
    return follower.ordered()


@pytest.mark.parametrize("output", ["plain", "json"])
def test_a_run_that_has_died_is_given_up_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    run = begin(tmp_path / "run", silent=100.0)
    assert cli.main(["watch", str(run), "--within", "50", "--output", output]) == 1
    captured = capsys.readouterr()
    assert "20" in captured.out  # what is known of it
    assert re.search("running, last written 1.. s ago: its processes may be gone", captured.err)


def test_it_is_given_up_while_it_is_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin(tmp_path / "run", silent=49.0)
    assert cli.main(["watch", str(run), "--within", "50", "--output", "json"]) == 1
    states = [json.loads(text)["status"] for text in capsys.readouterr().out.splitlines()]
    assert set(states) == {"running"}


def test_the_default_is_the_newest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["watch"]) == 2
    assert "there is no run in runs/" in capsys.readouterr().err
    begin(Path("runs/new"), "completed")
    begin(Path("runs/old"), "completed", silent=60.0)
    assert cli.main(["watch"]) == 0
    assert capsys.readouterr().out.startswith("new  completed")


def test_a_config_of_another_version_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin(tmp_path / "run")
    (run / "config.yaml").write_text("a_key_of_later: 3\n")
    assert cli.main(["watch", str(run)]) == 2
    error = capsys.readouterr().err
    assert "config.yaml cannot be read: unknown key 'a_key_of_later'" in error
    assert "use the version of bllpipe that env.json there names" in error


def test_a_process_that_goes_on_counts_its_waiting_from_nothing(tmp_path: Path) -> None:
    """Its first line says seconds since step 60; they were taken for seconds since the last line of the process before,
    and 20 steps for 60."""
    run = begin(tmp_path / "run")
    (run / "resumes.jsonl").write_text('{"step": 60}\n')
    (run / "metrics.jsonl").write_text(line(20, 0.5) + line(60, 1.5) + line(80, 1.0))
    assert [row.busy for row in rows(run)] == [0.5]  # 1 s of the 2 s that 20 steps took
    (run / "metrics.jsonl").write_text(line(80, 1.0))  # all of another directory's run
    assert [row.busy for row in rows(run)] == [0.5]


def test_the_lanes_of_a_rank_share_a_row_and_what_they_wait_for(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    lanes = [line(20, 1.9, 4, "feedback", f"lane {number}") for number in range(4)]
    (run / "metrics.jsonl").write_text("".join(lanes))
    follower = Follower(run)
    follower.refresh()
    *_, row = lines(follower, 80)
    assert "feedback" in row
    assert " 20%  blocks, stats 95%" in row


def test_a_long_name_gives_way_and_silence_and_reasons_are_told(tmp_path: Path) -> None:
    follower = Follower(begin(tmp_path / ("long" * 30), silent=75.0))
    follower.refresh()
    assert len(header(follower, 80)) <= 80
    assert re.search(r"silent for 1:..$", header(follower, 80))
    follower.status = {"status": "failed", "reason": f"no message {'of any kind ' * 9}came\nmore"}
    shown = lines(follower, 80)
    assert max(map(len, shown)) <= 80
    assert " ".join(shown).endswith("came")
