"""Mean and deviation of a folder: of a stated sample, measured once, and stored by the content of its images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bllpipe.config.schema import AugmentConfig, DataConfig
from bllpipe.data import statistics
from bllpipe.data.image_folder import FolderImages
from bllpipe.errors import DataError

SIZE = 8
Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(statistics, "BATCH", 3)
    return tmp_path / "torch" / "bllpipe" / "statistics"


def pixels(number: int) -> Pixels:
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten training images of the recipe's size, a test image a class."""
    for number in range(12):
        split = "train" if number < 10 else "test"
        path = tmp_path / "set" / split / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(path)
    return tmp_path / "set"


def images(root: Path, size: int = SIZE, workers: int = 0) -> FolderImages:
    return FolderImages(
        DataConfig(
            name="imagefolder",
            path=str(root),
            image_size=size,
            workers=workers,
            augment=AugmentConfig(recipe="cifar"),
        )
    )


def assert_measured(found: FolderImages, *numbers: int) -> None:
    sample = np.stack([pixels(number) for number in numbers]) / 255
    assert found.mean == pytest.approx(sample.mean((0, 1, 2)), abs=1e-12)
    assert found.std == pytest.approx(sample.std((0, 1, 2)), abs=1e-12)


def test_all_of_a_small_set(root: Path, cache: Path) -> None:
    assert_measured(images(root), *range(10))
    assert len(list(cache.iterdir())) == 1


def test_a_sample_at_equal_distances(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SAMPLE", 4)
    order = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9]  # cats, then dogs
    assert_measured(images(root), *(order[number * 10 // 4] for number in range(4)))


def test_processes_measure_the_same_bits(root: Path, cache: Path) -> None:
    alone = images(root).mean
    next(cache.iterdir()).unlink()
    assert images(root, workers=2).mean == alone


def test_it_is_measured_once_wherever_the_images_lie(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = images(root)
    both = first.mean, first.std
    root = root.rename(root.with_name("elsewhere"))
    monkeypatch.delattr(statistics, "_measured")
    again = images(root)
    assert (again.mean, again.std) == both


def test_other_images_and_other_sizes_have_their_own(root: Path, cache: Path) -> None:
    before = images(root).mean
    assert images(root, SIZE + 4).mean != before
    Image.fromarray(pixels(99)).save(root / "train" / "cat" / "00.png")
    assert_measured(images(root), 99, *range(1, 10))
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"mean": [0.5], "std": [0.5, 0.5, 0.5]}',
        '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.0]}',
        '{"mean": [0.5, 0.5, "0.5"], "std": [0.5, 0.5, 0.5]}',
        '{"mean": null, "std": [0.5, 0.5, 0.5]}',
    ],
)
def test_a_damaged_file_is_written_anew(root: Path, cache: Path, content: str) -> None:
    images(root).mean  # noqa: B018  # which writes the file
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_text(content)
    assert_measured(images(root), *range(10))
    assert file.read_bytes() == whole


def test_a_home_that_cannot_be_written(root: Path, cache: Path) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file in its place")
    assert_measured(images(root), *range(10))


def test_configured_values_need_no_measurement(root: Path, cache: Path) -> None:
    data = DataConfig(name="imagefolder", path=str(root), image_size=SIZE, augment=AugmentConfig(recipe="cifar"))
    given = FolderImages(DataConfig(**{**vars(data), "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}))
    assert (given.mean, given.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]) and not cache.exists()


def test_a_colour_without_variation_is_divided_by_one(root: Path) -> None:
    for file in root.rglob("*.png"):
        Image.new("RGB", (SIZE, SIZE), (51, 102, 0)).save(file)
    found = images(root)
    assert found.mean == pytest.approx([0.2, 0.4, 0.0]) and found.std == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("damage", ["folder", "text"])
def test_an_image_that_cannot_be_read_is_named(root: Path, damage: str) -> None:
    path = root / "train" / "cat" / "00.png"
    path.unlink()
    path.mkdir() if damage == "folder" else path.write_text("no image")
    found = images(root)
    with pytest.raises(DataError, match=r"cat/00\.png cannot be read as an image"):
        next(found.batches([("train", torch.tensor([0]))]))
