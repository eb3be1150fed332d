"""Data sets by name: one specification, one pair of mean and deviation, and labels that belong to the images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bllpipe.config.schema import DataConfig
from bllpipe.data.base import MEAN_AND_STD, Arrays, MemoryImages, mean_and_std
from bllpipe.data.catalog import DataSpec
from bllpipe.data.registry import load_arrays, load_images, load_labels
from bllpipe.errors import ConfigError


def arrays_of(train_NCHW: Tensor) -> Arrays:
    label_N = torch.arange(len(train_NCHW)) % 2
    return Arrays(train_NCHW, label_N, train_NCHW[:3], label_N[:3], num_classes=2)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_specification_survives_json(as_bytes: bool) -> None:
    spec = DataSpec(50_000, 10_000, (3, 32, 32), 10)
    text = spec.to_json()
    found = DataSpec.from_json(text.encode() if as_bytes else text)
    assert found == spec and isinstance(found.image_shape, tuple)


def test_images_in_memory_know_their_specification() -> None:
    images = MemoryImages(arrays_of(torch.zeros(8, 3, 5, 4, dtype=torch.uint8)), DataConfig(name="npz"))
    assert images.spec == DataSpec(8, 3, (3, 5, 4), 2)


def test_images_in_memory_come_as_they_are_asked_for() -> None:
    train_NCHW = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1)
    images = MemoryImages(arrays_of(train_NCHW), DataConfig(name="npz"))
    found = images.batches([("train", torch.tensor([7, 0])), ("test", torch.tensor([2])), ("train", torch.tensor([3]))])
    assert [batch.flatten().tolist() for batch in found] == [[7, 0], [2], [3]]


def loadable(name: str, folder: Path) -> DataConfig:
    """A small set of this name."""
    if name == "npz":
        pixels, labels = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 3
        np.savez(folder / "set.npz", train_x=pixels, train_y=labels, test_x=pixels[:4], test_y=labels[:4])
        return DataConfig(name="npz", path=str(folder / "set.npz"))
    return DataConfig(name="digits") if name == "digits" else DataConfig(name="synthetic", synthetic_images=20)


@pytest.mark.parametrize("name", ["digits", "synthetic", "npz"])
def test_labels_alone_are_those_of_the_images(name: str, tmp_path: Path) -> None:
    data = loadable(name, tmp_path)
    arrays, labels, spec = load_arrays(data, seed=3), load_labels(data, seed=3), load_images(data, seed=3).spec
    assert torch.equal(labels.train_N, arrays.train_N) and torch.equal(labels.test_N, arrays.test_N)
    assert (spec.num_train, spec.num_test) == (len(labels.train_N), len(labels.test_N))
    assert spec.num_classes == labels.num_classes == arrays.num_classes


def test_a_folder_is_loaded_by_name(tmp_path: Path) -> None:
    from PIL import Image

    for place in ("train/a", "train/b", "test/b"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place / "0.png")
    data = DataConfig(name="imagefolder", path=str(tmp_path), image_size=4)
    images, labels = load_images(data, 0), load_labels(data, 0)
    assert images.spec == DataSpec(2, 1, (3, 4, 4), 2) and labels.test_N.tolist() == [1]
    assert (images.mean, images.std) == MEAN_AND_STD["imagefolder"]


@pytest.mark.parametrize("name", MEAN_AND_STD)
def test_known_sets_are_normalised_as_published(name: Any) -> None:
    channels = len(MEAN_AND_STD[name][0])
    assert mean_and_std(DataConfig(name=name), channels, None) == MEAN_AND_STD[name]


def test_an_unknown_set_is_measured_on_its_first_5000_images() -> None:
    draws = torch.Generator().manual_seed(0)
    train_NCHW = torch.randint(0, 256, (5003, 3, 2, 2), generator=draws, dtype=torch.uint8)
    train_NCHW[5000:] = 255
    mean, std = mean_and_std(DataConfig(name="npz"), 3, train_NCHW)
    pixels = train_NCHW[:5000].numpy() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)))
    assert std == pytest.approx(pixels.std((0, 2, 3)))


@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (1, 2, 1, 1)])
def test_a_channel_without_variation_is_divided_by_one(shape: tuple[int, ...]) -> None:
    train_NCHW = torch.full(shape, 51, dtype=torch.uint8)
    mean, std = mean_and_std(DataConfig(name="npz"), 2, train_NCHW)
    assert mean == pytest.approx([0.2, 0.2]) and std == [1.0, 1.0]


@pytest.mark.parametrize("name", ["digits", "npz"])
def test_configured_values_come_first_one_by_one(name: Any) -> None:
    train_NCHW = torch.randint(0, 256, (9, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = mean_and_std(DataConfig(name=name), 1, train_NCHW)
    assert mean_and_std(DataConfig(name=name, mean=[0.7]), 1, train_NCHW) == ([0.7], std)
    assert mean_and_std(DataConfig(name=name, std=[0.7]), 1, train_NCHW) == (mean, [0.7])
    assert mean_and_std(DataConfig(name=name, mean=[0.6], std=[0.7]), 1, train_NCHW) == ([0.6], [0.7])


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5, 0.5], None, r"data\.mean has 2 values, but the images have 1 channels; give one each"),
        (None, [0.5, 0.5, 0.5], r"data\.std has 3 values, but the images have 1 channels; give one each"),
        (None, [0.0], r"data\.std is \[0\.0\]; expected numbers above 0"),
        (None, [-0.2], r"data\.std is \[-0\.2\]; expected numbers above 0"),
    ],
)
def test_impossible_mean_and_deviation(mean: list[float] | None, std: list[float] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mean_and_std(DataConfig(name="digits", mean=mean, std=std), 1, None)
