"""``bllpipe ckpt ls``, ``verify`` and ``show``: what they tell of whole, damaged and odd checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bllpipe import cli
from bllpipe.checkpoint import find_checkpoint
from bllpipe.errors import CheckpointError
from bllpipe.tools.analysis.checkpoint_inspection import describe_checkpoint, list_checkpoints, next_to_resume
from bllpipe.utils.console import age_text, size_text
from tests.support import jobs
from tests.support.checkpoint_samples import flip_bit, reseal, write_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with two whole checkpoints."""
    for step in (10, 20):
        write_checkpoint(tmp_path / "checkpoints", step)
    return tmp_path


def step(run: Path, number: int) -> Path:
    return run / "checkpoints" / f"step-{number:08}"


def odd(run: Path) -> None:
    """Adds one of every state."""
    for number in (30, 40, 50, 60, 70):
        write_checkpoint(run / "checkpoints", number)
    flip_bit(step(run, 30) / "rank-1.safetensors", 999)
    step(run, 40).rename(run / "checkpoints" / "step-00000040.replaced-first")
    (step(run, 50) / "rank-0.json").unlink()
    (step(run, 50) / "rank-1.json").write_text("{}")
    step(run, 60).rename(run / "checkpoints" / "step-00000060.partial-second")
    step(run, 70).rename(run / "checkpoints" / "the best one")
    step(run, 80).write_text("no directory")


def test_every_state_is_told(run: Path) -> None:
    odd(run)
    found = list_checkpoints(run)
    assert [(each.step, each.state, each.num_ranks, len(each.problems)) for each in found] == [
        (80, "damaged", None, 1),
        (60, "partial", None, 0),
        (50, "damaged", 2, 2),
        (40, "moved aside", 2, 0),
        (30, "damaged", 2, 1),
        (20, "whole", 2, 0),
        (10, "whole", 2, 0),
        (None, "misnamed", None, 1),
    ]
    assert "rank-0.json is missing" in found[2].problems[0] and "rank-1.json is damaged" in found[2].problems[1]
    assert "rank-1.safetensors is damaged: its SHA-256" in found[4].problems[0]
    taken, resumed = next_to_resume(found), find_checkpoint(run / "checkpoints", lambda text: None)
    assert taken is not None and resumed is not None and taken.name == resumed.path.name
    assert found[-2].bytes == sum(file.stat().st_size for file in step(run, 10).iterdir())


def test_sizes_alone_do_not_tell_a_flipped_bit(run: Path) -> None:
    odd(run)
    assert [each.state for each in list_checkpoints(run, sizes_only=True)].count("damaged") == 2


def test_files_that_were_written_but_cannot_be_read_are_damaged_too(run: Path) -> None:
    for number, name in ((10, "rank-0.json"), (20, "rank-1.safetensors")):
        (step(run, number) / name).write_bytes(b"sealed garbage")
        reseal(step(run, number))
    newer, older = list_checkpoints(run)
    assert "rank-1.safetensors is not a safetensors file" in newer.problems[0]
    assert "rank-0.json is damaged: it is not JSON" in older.problems[0]
    assert next_to_resume([newer, older]) is None


def test_ls_is_a_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd(run)
    os.utime(step(run, 10) / "manifest.json", (0, 0))
    assert cli.main(["ckpt", "ls", str(run)]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["step", "ranks", "size", "age", "directory", "state"]
    assert [row.split()[-1] for row in rows if "/" not in row] == [
        *("damaged", "partial", "damaged", "aside", "whole", "whole", "whole", "misnamed")
    ]
    (oldest,) = (row for row in rows if row.endswith("step-00000010                 whole"))
    assert oldest.split()[:2] == ["10", "2"] and oldest.split()[5] == "d"
    assert last == f"judged by names, manifests and sizes; use bllpipe ckpt verify {run} to read every byte"


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_both_give_json(run: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["ckpt", command, str(run), "--json"])
    records = json.loads(capsys.readouterr().out)
    assert [(record["step"], record["state"], record["problems"]) for record in records] == [
        (20, "whole", []),
        (10, "whole", []),
    ]
    assert records[0].keys() == {"name", "state", "step", "num_ranks", "bytes", "age_seconds", "problems"}


def test_verify_is_content_with_what_is_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ckpt", "verify", str(run)]) == 0
    assert "every byte is as it was written; --resume auto resumes from step-00000020" in capsys.readouterr().out
    assert cli.main(["ckpt", "verify", str(step(run, 10))]) == 0
    assert "resumes from step-00000010" in capsys.readouterr().out


def test_verify_names_the_damage_and_has_its_exit_code(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_bit(step(run, 20) / "rank-1.safetensors", 999)
    for path in (run, step(run, 20), run / "checkpoints"):
        assert cli.main(["ckpt", "verify", str(path)]) == 4
        assert "step-00000020/rank-1.safetensors is damaged: its SHA-256" in capsys.readouterr().out
    flip_bit(step(run, 10) / "rank-0.json", 9)
    assert cli.main(["ckpt", "verify", str(run)]) == 4
    assert "2 of 2 damaged; there is none to resume from" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["ls"], ["verify"], ["show"]])
def test_a_directory_without_checkpoints(tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ckpt", *words, str(tmp_path)]) == 4
    assert "holds no checkpoint; use a run directory or one of its checkpoints/step-N" in capsys.readouterr().err


def test_show_tells_of_every_tensor_and_of_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.in_this_process(tmp_path / "run", "engine=sequential", *jobs.RESNET, "steps=2")
    capsys.readouterr()
    assert cli.main(["ckpt", "show", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step-00000002: step 2, 5 ranks, ") and lines[0].endswith(" kB, format 1")
    assert [line.split()[0] for line in lines[1:11]] == sorted(line.split()[0] for line in lines[1:11])
    assert "  model.width: 4 (default 16)" in lines and "  engine: 'sequential' (default 'ranks')" in lines
    assert "config: 5 keys differ from the default:" in lines
    at = lines.index("rank 0:")
    assert lines[at + 1].startswith("  block 0, 53 tensors, ")
    assert ["model.conv1.weight", "F32", "[4,", "1,", "3,", "3]", "144", "bytes"] in [line.split() for line in lines]
    assert lines[lines.index("rank 4:") + 1].startswith("  feedback, ")


def test_show_goes_on_behind_what_is_damaged(run: Path) -> None:
    (step(run, 20) / "rank-0.safetensors").write_bytes(b"")
    (step(run, 20) / "rank-1.json").write_text("[")
    lines = list(describe_checkpoint(run))
    assert "config: none is recorded" in lines
    assert "rank-0.safetensors is not a safetensors file" in lines[lines.index("rank 0:") + 1]
    assert "rank-1.json is damaged: it is not JSON" in lines[lines.index("rank 1:") + 1]


def test_show_trusts_no_manifest_that_was_changed(run: Path) -> None:
    flip_bit(step(run, 20) / "manifest.json", 999)
    with pytest.raises(CheckpointError, match=r"step-00000020/manifest.json"):
        list(describe_checkpoint(step(run, 20)))


def test_words_of_a_file_do_not_move_the_cursor(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 1, {0: {"\033[2J" + "x" * 999: torch.ones(1)}})
    text = "\n".join(describe_checkpoint(path))
    assert "\033" not in text and "'\\x1b[2Jxxx" in text and len(text) < 2000


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 B"), (999, "999 B"), (1_200_000, "1.2 MB"), (10**12, "1.0 TB"), (10**16, "10000.0 TB")]
)
def test_sizes_in_words(number: int, words: str) -> None:
    assert size_text(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (3e6, "34 d")]
)
def test_ages_in_words(seconds: float, words: str) -> None:
    assert age_text(seconds) == words


def test_help_needs_no_torch() -> None:
    source = "import sys, bllpipe.cli as c\ntry: c.main(['ckpt', '--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=jobs.REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert "verify" in done.stdout
