"""Paths that are unusual but legal work, and those that the system refuses are refused in one message: bytes that are
not UTF-8, names of 300 letters, paths of 5,000, links in a circle, a file where a directory is expected, a directory
where a file is expected, null characters.

A run directory with a Latin-1 name once ended in a TypeError of torch's store, a long ``--out`` in an OSError.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bllpipe
from bllpipe import cli, launch
from bllpipe.config.loader import load_stored_config
from bllpipe.errors import BllpipeError, ConfigError
from bllpipe.training.run_directory import post_directory, posted_directory
from bllpipe.utils.files import refused_paths, write_result
from tests.support import jobs

REPOSITORY = Path(__file__).parents[3]
LATIN = os.fsdecode(b"caf\xe9")  # é in Latin-1, which is no UTF-8
NAMES = {"latin": LATIN, "accents": "caf\u00e9 \u65e5", "newline": "a\nb", "dash": "./-x", "quotes": 'it\'s "a" $b'}
LONG = {"name": "n" * 300, "path": "/".join(["d" * 99] * 50)}
LONG_INSIDE = [f"absent/{'n' * 300}/x", "e/" * 2020]  # the second one fits, but not the run's files in it
SETTINGS = (*jobs.RESNET, "engine=sequential", "blocks=2", "evaluate.every_epochs=0", "trace.num_steps=2")
TRACED = ("trace.first_step=1", "steps=3")


def train(run: str, *more: str) -> int:
    return cli.main(["train", "--run-dir", run, "--quiet", *jobs.words(None, *SETTINGS, *TRACED), *more])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train(str(folder)) == 0
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.mark.parametrize("kind", ["latin", "newline"])
def test_a_run_and_all_that_is_made_of_it_may_have_any_name(
    kind: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = NAMES[kind]
    assert train(name, "--set", "stop_at=2") == 0
    assert train(name, "--resume", "auto") == 0
    for command in (
        ("eval", name, "--json", f"{name}.json"),
        ("export", name, f"{name}.safetensors", "--to", "bllpipe", "--heads", f"{name}.heads"),
        ("timeline", name, "--out", f"{name}.svg", "--trace", f"{name}.trace"),
        ("timeline", name, "--out", f"{name}.html"),
        ("timeline", name, "--out", f"{name}.png"),
        ("report", name, "--out", f"{name}-report.html"),
        ("ckpt", "ls", name),
        ("ckpt", "verify", name),
        ("ckpt", "show", name),
        ("train", "--quiet", *jobs.words(None, *SETTINGS, *TRACED), "--resume", name, "--run-dir", f"{name}-2"),
        ("watch", name, "--once"),
        ("health", name),
    ):
        assert cli.main(list(command)) == 0, (command, capsys.readouterr().err)
    network = bllpipe.load_network(Path(f"{name}.safetensors"))
    assert network.state_dict().keys() == bllpipe.Run(name).weights().keys()
    assert load_stored_config(f"{name}/config.yaml").stop_at is None


@pytest.mark.parametrize("kind", NAMES)
def test_data_and_config_may_have_any_name(kind: str, here: Path) -> None:
    name, (images, labels) = NAMES[kind], (np.zeros((32, 8, 8), np.uint8), np.arange(32) % 3)
    with Path(name).open("wb") as file:
        np.savez(file, train_x=images, train_y=labels, test_x=images, test_y=labels)
    Path(f"{name}.yaml").write_text("data: {name: npz, batch_size: 16}\n")
    quoted = json.dumps(name) if kind in ("newline", "quotes") else name
    words = ["--config", f"{name}.yaml", "--set", f"data.path={quoted}"]
    assert cli.main(["check", *words]) == 0
    small = jobs.words(None, "engine=sequential", "blocks=2", "model.width=4", "steps=2")
    assert cli.main(["train", "--run-dir", "run", *small, *words]) == 0
    assert load_stored_config("run/config.yaml").data.path == name
    assert cli.main(["eval", "run", "--data-path", name]) == 0


def test_a_plan_may_have_any_name(here: Path) -> None:
    small = jobs.words(None, "engine=sequential", "model.width=4", "data.batch_size=8")
    files = ["--profile", LATIN, "--json", f"{LATIN}.json", "--write", f"{LATIN}.yaml"]
    words = ["plan", *small, "--repetitions", "2", "--blocks", "2", "--microbatches", "4", *files]
    assert cli.main(words) == 0
    assert cli.main(words) == 0  # with the profile that is there now
    assert load_stored_config(f"{LATIN}.yaml").num_blocks == 2


@pytest.mark.ranks
def test_a_job_under_another_locale_and_encoding(here: Path) -> None:
    """Under LC_ALL=C, without UTF-8 mode, Python has ASCII for files, names and streams."""
    variables = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    words = jobs.words(None, *SETTINGS, "model.width=2", "steps=2", "blocks=1", "engine=ranks")
    command = [*map(os.fsencode, (sys.executable, "-m", "bllpipe.launch", *words, "--run-dir")), b"caf\xc3\xa9 \xe9"]
    done = subprocess.run(command, env={**variables, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"run directory" in done.stdout and done.stdout.isascii()
    assert json.loads(Path(os.fsdecode(b"caf\xc3\xa9 \xe9"), "status.json").read_text())["status"] == "completed"


def refusals(odd: str, run: Path) -> list[list[str]]:
    """Every command with ``odd`` for each of its paths."""
    digits, words = jobs.words(None, *SETTINGS, "steps=2"), ["--repetitions", "2", "--blocks", "2"]
    data = [["--set", f"data.name={name}", "--set", f"data.path={odd}"] for name in ("npz", "imagefolder", "cifar10")]
    return [
        ["train", *digits, "--run-dir", odd],
        ["train", *digits, "--run-dir", odd, "--resume", "auto"],
        ["train", *digits, "--resume", odd],
        *([command, "--config", odd] for command in ("train", "check", "plan", "slurm")),
        *(["train", *digits, *each, "--run-dir", "r"] for each in data),
        *(["plan", *digits, *words, option, odd] for option in ("--profile", "--json", "--write")),
        *([command, odd] for command in ("report", "eval", "timeline", "watch", "health")),
        ["report", str(run), "--out", odd],
        ["report", str(run), "--out", "r.html", "--tensorboard", odd],
        ["eval", str(run), "--json", odd],
        ["export", odd, "f"],
        ["export", str(run), odd],
        ["export", str(run), "f", "--heads", odd],
        ["timeline", str(run), "--out", f"{odd}.svg"],
        ["timeline", str(run), "--out", "t.svg", "--trace", odd],
        *(["ckpt", command, odd] for command in ("ls", "verify", "show")),
        ["slurm", *digits, "--out", odd],
        ["data", "verify", odd],
        ["data", "verify", "cifar10", "--path", odd],
    ]


@pytest.mark.parametrize("kind", LONG)
def test_what_is_too_long_is_refused_in_a_message(
    kind: str, run: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in refusals(LONG[kind], run):
        code = cli.main(words)
        captured = capsys.readouterr()
        told = captured.err + (captured.out if words[0] == "health" else "")
        assert code in (1, 2, 4) and told, words
        assert "Traceback" not in told and "a fault in bllpipe" not in told, (words, told)
        assert "too long" in told or words[0] in ("health", "data"), told


def test_a_circle_of_links_is_refused_in_a_message(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("circle").symlink_to("circle")
    for words in [words for words in refusals("circle", run) if words[0] != "plan"]:  # which measures first
        cli.main(words)  # some replace the link, or write beside it
        assert "Traceback" not in capsys.readouterr().err, words


def test_a_file_is_no_directory(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    for words in [words for words in refusals("file/inside", run) if words[0] != "plan"]:
        assert cli.main(words) != 0, words
        assert "Traceback" not in capsys.readouterr().err, words


def test_null_characters_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"run_dir is 'a\\x00b'; expected a path without null characters; use a dir"):
        bllpipe.train(data="digits", run_dir="a\0b")
    with pytest.raises(ConfigError, match=r"resume is '\\x00'; expected a path without null characters; use resume="):
        bllpipe.train(data="digits", resume="\0")


def test_a_script_gets_a_config_error(here: Path) -> None:
    for odd in (*LONG.values(), *LONG_INSIDE):
        with pytest.raises(ConfigError, match="too long; expected names of at most 255 bytes, and a path of at most 4"):
            bllpipe.train(data="digits", blocks=2, settings={"steps": 2, "model.width": 4}, run_dir=odd)
    with pytest.raises(ConfigError, match="n... .300 characters. cannot be used: File name too long"):
        bllpipe.train(data="npz", blocks=2, settings={"data.path": LONG["name"]})


def test_a_job_script_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--run-dir", LATIN], ["--set", f"data.path={LATIN}", "--set", "data.name=npz"]):
        assert cli.main(["slurm", "--gpus-per-node", "0", *words]) == 2
        assert "bytes that are not UTF-8, which a job script does not; use another name" in capsys.readouterr().err


def test_event_files_are_for_paths_in_utf_8(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    assert cli.main(["report", str(run), "--out", "r.html", "--tensorboard", LATIN]) == 2
    assert "not UTF-8, which TensorBoard does not take; rename the run or name another" in capsys.readouterr().err


def test_a_store_keeps_every_name() -> None:
    store: Any = torch.distributed.HashStore()
    assert posted_directory(store) is None
    for name in NAMES.values():
        post_directory(store, Path("/tmp") / name)
        assert posted_directory(store) == Path("/tmp") / name


def test_a_full_disk_is_an_error_of_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(run), "--json", "/dev/full"]) == 1
    assert "cannot write /dev/full: No space left on device; " in capsys.readouterr().err
    with pytest.raises(BllpipeError, match="cannot write absent/x: No such file or directory; .* bytes are free"):
        write_result(Path("absent/x"), "")


def test_another_error_is_a_fault() -> None:
    with pytest.raises(OSError, match="no file"), refused_paths():
        raise OSError(5, "no file is named here")
    with pytest.raises(RuntimeError, match="of a module"), refused_paths():
        raise RuntimeError("an error of a module")
    with pytest.raises(BrokenPipeError), refused_paths():
        raise BrokenPipeError(32, "the reader is gone", "a pipe")


def test_the_launcher_refuses_before_it_starts_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--set", "data.name=npz", "--set", f"data.path={LONG['name']}"]) == 2
    assert capsys.readouterr().err.count("File name too long; expected names of at most 255 bytes") == 1
