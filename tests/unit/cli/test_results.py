"""``bllpipe export``, ``eval`` and ``report`` as a user types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bllpipe import cli
from bllpipe.tools.analysis.network_file import load_network
from tests.support import jobs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "digits"
    jobs.in_this_process(path, "engine=sequential", *jobs.RESNET, "steps=12")
    return path


def test_export_says_what_it_wrote_and_checked(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.safetensors"
    assert cli.main(["export", str(run), "--to", "torchvision", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"wrote {file}: 122 tensors for ")
    assert out.endswith("exactly that of summary.json\n")
    assert load_network(file).last_unit == "layer4.1"


def test_export_without_a_check(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), str(tmp_path / "model"), "--to", "bllpipe", "--no-check"]) == 0
    assert "not checked" in capsys.readouterr().out
    assert (tmp_path / "model").exists()


def test_eval_prints_a_table_and_writes_json(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert cli.main(["eval", str(run), "--json", str(file), "--threshold", "0.25", "0.75"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("digits: bll, step 12, 355 test images") and out.endswith(f"wrote {file}\n")
    record = json.loads(file.read_text())
    assert record["test_accuracy"] == jobs.summary(run)["test_accuracy"]
    assert [each["threshold"] for each in record["early_exits"]] == [0.25, 0.75]


def test_eval_has_thresholds_of_its_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(run)]) == 0
    words = capsys.readouterr().out.split()
    assert all(f"{threshold:.3f}" in words for threshold in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99))


@pytest.mark.parametrize("name", [None, "page.html"])
def test_report_says_where_it_was_written(
    name: str | None, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / name if name else run / "report.html"
    assert cli.main(["report", str(run), *(["--out", str(out)] if name else [])]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert "digits" in out.read_text()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["eval", "{none}"], 2, "none is not a directory; expected the directory of a run"),
        (["export", "{none}", "{file}"], 2, "none is not a directory; expected the directory of a run"),
        (["report", "{none}"], 2, "none does not exist; expected a run directory"),
        (["eval", "{empty}"], 2, "empty holds no config.yaml, so it is not the directory of a run"),
        (["export", "{empty}", "{file}"], 2, "empty holds no config.yaml, so it is not the directory of a run"),
        (["report", "{empty}"], 2, "expected a run directory with a config.yaml"),
        (["eval", "{bare}"], 4, "bare holds no checkpoint yet; resume the run: --run-dir"),
        (["export", "{bare}", "{file}"], 4, "bare holds no checkpoint yet; resume the run: --run-dir"),
        (["eval", "{run}", "--threshold", "2"], 2, "--threshold 2 is no probability"),
        (["eval", "{run}", "--json", "{none}/file"], 2, "there is no directory {none}; make it, or name another"),
        (["export", "{run}", "{none}/file"], 2, "there is no directory {none}; make it, or name another"),
        (["export", "{run}", "{empty}"], 2, "empty is a directory; expected the name of a file, such as {empty}/FILE"),
    ],
)
def test_a_mistake_is_one_message_and_an_exit_code(
    words: list[str], code: int, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: str(tmp_path / name) for name in ("none", "empty", "bare", "file")} | {"run": str(run)}
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "bare")
    assert cli.main([word.format(**places) for word in words]) == code
    error = capsys.readouterr().err
    assert error.startswith("bllpipe: ") and error.count("bllpipe: ") == 1
    assert message.format(**places) in error
    assert not (tmp_path / "file").exists()


def test_a_damaged_checkpoint_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = Path(shutil.copytree(run, tmp_path / "damaged"))
    (damaged / "checkpoints" / "step-00000012" / "rank-0.json").unlink()
    assert cli.main(["eval", str(damaged)]) == 4
    error = capsys.readouterr().err
    assert "bllpipe: skipped the checkpoint step-00000012" in error
    assert "all 1 checkpoints in" in error


def test_help_needs_no_torch() -> None:
    source = (
        "import sys, bllpipe.cli as cli\ntry: cli.main(['eval', '--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=jobs.REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert "--threshold" in done.stdout
