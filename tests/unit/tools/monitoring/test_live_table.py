"""A run directory as a table, at any width, and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bllpipe import cli
from bllpipe.config import load_config, to_yaml
from bllpipe.tools.monitoring.live_table import lines
from bllpipe.tools.monitoring.progress import snapshot
from bllpipe.tools.monitoring.run_status import Follower


def line(step: int, rank: int, role: str, waited: float, **figures: float) -> str:
    record = {"phase": "train", "step": step, "epoch": 1, "rank": rank, "role": role, "actor": role}
    return json.dumps({**record, "images_per_second": 640.0, "waiting": {"alpha 0->1": waited}, **figures}) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(to_yaml(load_config(None, ["steps=100", "blocks=2"])))
    (tmp_path / "status.json").write_text('{"status": "completed", "step": 40}')
    rows = [line(20, 0, "block 0", 0.0, loss=0.5, accuracy=0.9), line(20, 1, "block 1", 1.0, loss=0.25, accuracy=0.8)]
    (tmp_path / "metrics.jsonl").write_text("".join(rows) + line(40, 1, "block 1", 1.5, loss=0.125, accuracy=0.85))
    return tmp_path


def followed(directory: Path) -> Follower:
    follower = Follower(directory)
    follower.refresh()
    return follower


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("unicode", [True, False])
def test_the_view_fits_and_shows_who_waits_for_what(run: Path, width: int, unicode: bool) -> None:
    shown = lines(followed(run), width, unicode=unicode)
    assert max(map(len, shown)) <= width
    text = "\n".join(shown)
    assert "step 20/100" in text
    assert "block 0, alpha 25%" in text  # 0.5 s of the 2 s that 20 batches of 64 images took
    assert " 75%" in text
    assert unicode or text.isascii()


def test_what_is_added_is_taken_in_and_a_line_half_written_waits(run: Path) -> None:
    follower, more = followed(run), line(40, 0, "block 0", 0.0)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(more[:30])
    follower.refresh()
    assert follower.step == 20
    with (run / "metrics.jsonl").open("a") as file:
        file.write(more[30:])
    follower.refresh()
    assert follower.step == 40


def test_a_run_that_begins_again_is_read_again(run: Path) -> None:
    follower = followed(run)
    (run / "metrics.jsonl").write_text(line(20, 0, "block 0", 0.0))
    follower.refresh()
    assert [(row.rank, row.step) for row in follower.ordered()] == [(0, 20)]


def replica(step: int, number: int, waited: float, rank: int | None = None) -> str:
    """A line of replicas.jsonl, or of metrics.jsonl for the first replica of block 0."""
    own = json.loads(line(step, number if rank is None else rank, f"block 0 replica {number}", waited))
    return json.dumps({**own, "actor": f"block 0 replica {number}" if number else "block 0"}) + "\n"


@pytest.mark.parametrize("width", [80, 200])
def test_a_row_of_several_replicas_names_the_slowest(run: Path, width: int) -> None:
    """The one that waits least: the others wait for it in the sum."""
    first = json.dumps({**json.loads(replica(20, 0, 1.0)), "loss": 0.5}) + "\n"
    (run / "metrics.jsonl").write_text(first + line(20, 3, "block 1", 1.0).replace("0->1", "2->3"))
    (run / "replicas.jsonl").write_text(replica(20, 1, 1.5) + replica(20, 2, 0.5))
    shown = [" ".join(text.split()) for text in lines(followed(run), width)]
    assert len(shown) == 4, "a row a block"
    name = "block 0/2 of 3" if width > 80 else "block 0/2"
    assert shown[2].startswith(f"2 {name} 20 640") and " 75% " in shown[2] and " 0.500" in shown[2]
    assert "50% block 0/2, alpha 50%" in shown[3], "which is waited for"
    (run / "replicas.jsonl").open("a").write(replica(40, 2, 2.5))
    slower = [" ".join(text.split()) for text in lines(followed(run), width)]
    assert slower[2].startswith("0 block 0/0"), "the first replica, now that the last waits 2 s of 2"


def test_replicas_that_a_resumed_run_lacks_are_not_shown(run: Path) -> None:
    (run / "metrics.jsonl").write_text(replica(20, 0, 1.0) + line(20, 3, "block 1", 1.0))
    (run / "replicas.jsonl").write_text(replica(20, 1, 1.5) + replica(20, 2, 0.5))
    follower = followed(run)
    assert [row.rank for row in follower.ordered()] == [0, 1, 2, 3]
    (run / "resumes.jsonl").write_text('{"step": 20}\n')
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line(40, 0, "block 0", 0.5) + line(40, 1, "block 1", 0.5))
    follower.refresh()
    assert [(row.rank, row.role, row.step) for row in follower.ordered()] == [(0, "block 0", 40), (1, "block 1", 40)]
    assert follower.step == 40


def test_json_is_one_line(run: Path) -> None:
    text = snapshot(followed(run))
    assert "\n" not in text
    assert [rank["busy"] for rank in json.loads(text)["ranks"]] == [1.0, 0.75]


def test_watch_shows_a_finished_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", str(run), "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "completed"


def test_watch_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", str(tmp_path)]) == 2
    assert "holds no config.yaml" in capsys.readouterr().err


def test_no_help_imports_torch() -> None:
    """All subcommands in one process: what one of them imported would be seen after the last."""
    program = (
        "import sys, argparse\nfrom bllpipe.cli import _parser, main\n"
        "def names(parser):\n"
        "    for action in parser._actions:\n"
        "        if isinstance(action, argparse._SubParsersAction):\n"
        "            for name, one in action.choices.items():\n"
        "                yield [name]\n"
        "                yield from ([name, *more] for more in names(one))\n"
        "every = list(names(_parser()))\nassert ['data', 'verify'] in every, every\n"
        "for words in every:\n"
        "    try:\n        main([*words, '--help'])\n"
        "    except SystemExit as end:\n        assert end.code == 0, words\n"
        "    assert not {'torch', 'rich', 'numpy', 'shtab'} & sys.modules.keys(), words\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
