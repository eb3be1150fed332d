"""A run goes on with the data of its checkpoint, or says that they are others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import bllpipe
from bllpipe.config.schema import DataConfig
from bllpipe.data.base import data_identity, describe_identity, labels_sha256
from bllpipe.data.catalog import DataSpec
from bllpipe.data.image_folder import FolderImages
from bllpipe.errors import ConfigError

Pair = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def pairs(count: int = 48, shift: int = 0) -> Pair:
    labels = (torch.arange(count) + shift) % 3
    return (torch.randn(count, 6), labels), (torch.randn(12, 6), torch.arange(12) % 3)


def go(data: Pair, run: Path, steps: int, **words: object) -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    settings = {"data.batch_size": 16, "steps": 6, **({"stop_at": steps} if steps < 6 else {})}
    bllpipe.train(network, data, blocks=[2], settings=settings, run_dir=run, **words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        lambda: pairs(shift=1),
        lambda: pairs(64),
        lambda: (pairs()[0], (torch.randn(6, 6), torch.arange(6) % 3)),
        lambda: (pairs()[0], (torch.randn(12, 6), (torch.arange(12) + 1) % 3)),
    ],
)
def test_other_data_are_refused_unless_accepted(change: Callable[[], Pair], tmp_path: Path) -> None:
    go(pairs(), tmp_path / "run", 2)
    with pytest.raises(ConfigError, match=r"(?s)data: 48 training and 12 test .* then, .*add --accept data to resume"):
        go(change(), tmp_path / "run", 6, resume="auto")
    go(change(), tmp_path / "run", 6, resume="auto", accept="data")
    assert '"data": ["48 training' in (tmp_path / "run" / "resumes.jsonl").read_text()


def test_the_same_data_go_on(tmp_path: Path) -> None:
    go(pairs(), tmp_path / "run", 2)
    go(pairs(), tmp_path / "run", 6, resume="auto")


def test_folders_are_known_by_the_names_in_them(tmp_path: Path) -> None:
    def digest(root: Path) -> str:
        return FolderImages(DataConfig(name="imagefolder", path=str(root), image_size=8)).spec.labels_sha256

    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / "a" / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a" / split / name / "0.png")
    before = digest(tmp_path / "a")
    moved = (tmp_path / "a").rename(tmp_path / "b")
    assert digest(moved) == before
    for split in ("train", "test"):
        (moved / split / "ant").rename(moved / split / "cat")
    assert digest(moved) != before


def test_what_is_held_of_the_data() -> None:
    labels = torch.arange(4)
    digest = labels_sha256(labels, labels[:2])
    assert digest != labels_sha256(labels[:2], labels)
    record = data_identity(DataSpec(4, 2, (1, 8, 8), 4, digest))
    assert describe_identity(record) == f"4 training and 2 test images [1, 8, 8] of 4 classes, labels {digest[:8]}"
