"""``bllpipe data verify`` reads everything and names what is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bllpipe import cli


def test_a_folder_is_decoded_and_damage_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (9, 8)).save(tmp_path / split / name / "one.png")
    assert cli.main(["data", "verify", str(tmp_path)]) == 0
    assert "2 training and 2 test images of 3 x 32 x 32" in capsys.readouterr().out
    (tmp_path / "train" / "cat" / "two.png").write_bytes(b"no image")
    assert cli.main(["data", "verify", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "1 of 5 images are damaged" in error
    assert "two.png" in error


def test_an_archive_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = np.zeros((4, 8, 8), np.uint8), np.arange(4)
    np.savez(tmp_path / "a.npz", train_x=images, train_y=labels, test_x=images, test_y=labels)
    assert cli.main(["data", "verify", str(tmp_path / "a.npz")]) == 0
    assert "4 training and 4 test images of 1 x 8 x 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [(["nothing"], "is neither a file or folder"), (["cifar10"], "cifar10 is missing: its original files are not in")],
)
def test_what_is_not_there_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "verify", *words, "--path", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
