"""The real CIFAR-10 through an archive and through folders: the published statistics, and the same pixels."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bllpipe.config.schema import DataConfig
from bllpipe.data.base import MEAN_AND_STD, MemoryImages
from bllpipe.data.image_folder import FolderImages, folder_labels
from bllpipe.data.registry import read_arrays

FOLDER = Path(__file__).parents[4] / "shared" / "data" / "cifar10"

pytestmark = pytest.mark.skipif(
    not (FOLDER / "test_0.webp").is_file(), reason="needs the lossless grids of CIFAR-10 next to the repository"
)
Cut = tuple[NDArray[np.uint8], NDArray[np.int64], Any]


@pytest.fixture(scope="module")
def cut() -> Cut:
    """The 10,000 test images [N, H, W, C], their labels, and what is known about them."""
    with Image.open(FOLDER / "test_0.webp") as grid:
        pixels = np.array(grid.convert("RGB"))
    images = pixels.reshape(100, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(10_000, 32, 32, 3)
    labels = np.load(FOLDER / "labels.npz")["test"].astype(np.int64)
    return images, labels, json.loads((FOLDER / "meta.json").read_text())


def test_an_archive_has_the_published_statistics(cut: Cut, tmp_path: Path) -> None:
    images, labels, meta = cut
    path = str(tmp_path / "cifar10.npz")
    np.savez(path, train_x=images, train_y=labels, test_x=images[:100], test_y=labels[:100])
    arrays = read_arrays(path)
    stored = arrays.train_NCHW.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    assert hashlib.sha256(stored).hexdigest() == meta["sha256"]["test_x"]
    assert arrays.train_N.bincount().tolist() == [1000] * 10 and arrays.num_classes == 10
    pixels = arrays.train_NCHW.to(torch.float32) / 255
    mean, std = MEAN_AND_STD["cifar10"]
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(mean, abs=0.01)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(std, abs=0.01)
    measured = MemoryImages(arrays, DataConfig(name="npz", path=path, mean=None, std=None))
    assert measured.mean == pytest.approx(mean, abs=0.01) and measured.std == pytest.approx(std, abs=0.01)


def test_folders_give_exactly_the_pixels_of_the_archive(cut: Cut, tmp_path: Path) -> None:
    images, labels, meta = cut
    index = np.concatenate([np.flatnonzero(labels == label)[:6] for label in range(10)])
    is_test = np.arange(60) % 3 == 0
    train, test = index[~is_test], index[is_test]
    for split, chosen in (("train", train), ("test", test)):
        for number in chosen:
            path = tmp_path / split / meta["classes"][labels[number]] / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number]).save(path)
    archive = str(tmp_path / "few.npz")
    np.savez(archive, train_x=images[train], train_y=labels[train], test_x=images[test], test_y=labels[test])
    arrays, data = read_arrays(archive), DataConfig(name="imagefolder", path=str(tmp_path), image_size=32)
    train_NCHW, test_NCHW = FolderImages(data).batches([("train", torch.arange(40)), ("test", torch.arange(20))])
    assert torch.equal(train_NCHW, arrays.train_NCHW) and torch.equal(test_NCHW, arrays.test_NCHW)
    found = folder_labels(data)
    assert torch.equal(found.train_N, arrays.train_N) and torch.equal(found.test_N, arrays.test_N)
