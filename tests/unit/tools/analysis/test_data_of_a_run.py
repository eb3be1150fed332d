"""``eval`` and ``export`` compare the data that they find with those of the checkpoint, as a resume does.

With other data ``eval`` once printed an accuracy, and ``export`` wrote mean and deviation, of a set that the run had
never seen. The kind: what a run has checked is not checked where its results are used.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bllpipe import cli
from tests.support import jobs

SETTINGS = ("engine=sequential", "blocks=2", "model.width=4", "data.batch_size=16", "steps=2")


def archive(path: Path, count: int = 48, shift: int = 0, tests: int = 16, test_shift: int = 0) -> Path:
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (count + tests, 8, 8), dtype=np.uint8)
    labels = (np.arange(count) + shift) % 3, (np.arange(tests) + test_shift) % 3
    np.savez(path, train_x=images[:count], train_y=labels[0], test_x=images[count:], test_y=labels[1])
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data have moved since."""
    folder = tmp_path_factory.mktemp("run")
    data = archive(folder / "data.npz")
    jobs.in_this_process(folder / "run", *SETTINGS, "data.name=npz", f"data.path={data}")
    data.rename(folder / "moved.npz")
    return folder / "run"


def test_data_that_have_moved_are_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", str(run)]) == 2
    assert "data.npz does not exist; expected a NumPy archive" in capsys.readouterr().err
    moved = str(run.parent / "moved.npz")
    assert cli.main(["eval", str(run), "--data-path", moved]) == 0
    assert cli.main(["export", str(run), str(tmp_path / "f"), "--to", "bllpipe", "--data-path", moved]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "change", [{"shift": 1}, {"count": 64}, {"tests": 17}, {"test_shift": 1}], ids=lambda change: next(iter(change))
)
@pytest.mark.parametrize("command", ["eval", "export"])
def test_other_data_are_refused_unless_accepted(
    command: str, change: dict[str, int], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(run)] if command == "eval" else ["export", str(run), str(tmp_path / "f"), "--to", "bllpipe"]
    words += ["--data-path", str(archive(tmp_path / "other.npz", **change))]
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert "step-00000002 was trained on other data:\n  data: 48 training and 16 test images [1, 8, 8] of 3" in told
    assert told.endswith(" now\nname the old data with --data-path PATH, or add --accept data to go on with these\n")
    assert not (tmp_path / "f").exists()
    assert cli.main([*words, "--accept", "data"]) == 0
    assert "goes on with other data than those of step-00000002, as accepted:\n" in capsys.readouterr().err


def test_a_folder_with_other_classes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / "d" / split / name).mkdir(parents=True)
            for number in range(16):
                Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "d" / split / name / f"{number}.png")
    data = ("data.name=imagefolder", f"data.path={tmp_path / 'd'}", "data.image_size=8")
    jobs.in_this_process(tmp_path / "run", *SETTINGS, *data)
    (tmp_path / "d").rename(tmp_path / "e")
    words = ["eval", str(tmp_path / "run"), "--data-path", str(tmp_path / "e")]
    assert cli.main(words) == 0
    for split in ("train", "test"):
        (tmp_path / "e" / split / "ant").rename(tmp_path / "e" / split / "cat")
    assert cli.main(words) == 2
    assert "was trained on other data:" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_hold_its_data_is_tested_on_any(run: Path, tmp_path: Path) -> None:
    """Those of version 0.1.0 do not."""
    old = Path(__file__).parents[3] / "fixtures" / "run-of-0.1.0"
    assert "data" not in json.loads((old / "checkpoints" / "step-00000020" / "rank-0.json").read_text())
    assert cli.main(["eval", str(old)]) == 0


def test_data_without_files_have_no_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The path was once ignored."""
    jobs.in_this_process(tmp_path / "run", *SETTINGS)
    assert cli.main(["eval", str(tmp_path / "run"), "--data-path", "elsewhere"]) == 2
    assert "--data-path is elsewhere, but " in (told := capsys.readouterr().err)
    assert "was trained on digits, which reads no files; leave it out" in told
