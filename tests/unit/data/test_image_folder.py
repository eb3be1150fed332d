"""Folders of images: what is found in them, how it is decoded, and the errors when it cannot be."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, Resize

from bllpipe.config.schema import DataConfig
from bllpipe.data import decoding, metadata
from bllpipe.data.base import Split
from bllpipe.data.image_folder import FolderImages, folder_labels
from bllpipe.errors import DataError

SIZE = 16


def noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(image: Image.Image | NDArray[Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)


def configured(root: Path, workers: int = 0) -> DataConfig:
    return DataConfig(name="imagefolder", path=str(root), image_size=SIZE, workers=workers)


def decoded(root: Path, split: Split, *index: int) -> Tensor:
    """uint8 [B, C, H, W]"""
    return next(FolderImages(configured(root)).batches([(split, torch.tensor(index))]))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three training and two test images a class, in the classes cat and dog."""
    for number in range(10):
        split, name = ("train", "test")[number >= 6], ("dog", "cat")[number % 2]
        save(noise(SIZE, SIZE, number), tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_classes_are_sorted_and_files_too(root: Path) -> None:
    images, labels = FolderImages(configured(root)), folder_labels(configured(root))
    assert labels.train_N.tolist() == [0, 0, 0, 1, 1, 1] and labels.test_N.tolist() == [0, 0, 1, 1]
    assert labels.train_N.dtype == torch.int64 and labels.num_classes == 2
    assert (images.spec.num_train, images.spec.num_test, images.spec.num_classes) == (6, 4, 2)
    assert images.spec.image_shape == (3, SIZE, SIZE)
    for split, numbers in (("train", [1, 3, 5, 0, 2, 4]), ("test", [7, 9, 6, 8])):
        expected = [torch.from_numpy(noise(SIZE, SIZE, number)).permute(2, 0, 1) for number in numbers]
        (found_BCHW,) = images.batches([("train" if split == "train" else "test", torch.arange(len(numbers)))])
        assert found_BCHW.dtype == torch.uint8 and torch.equal(found_BCHW, torch.stack(expected))


def test_batches_come_as_they_are_asked_for(root: Path) -> None:
    wanted: list[tuple[Split, Tensor]] = [("train", torch.tensor([4, 0])), ("test", torch.tensor([3]))]
    first_BCHW, second_BCHW = FolderImages(configured(root)).batches(wanted)
    assert torch.equal(first_BCHW, torch.cat([decoded(root, "train", 4), decoded(root, "train", 0)]))
    assert torch.equal(second_BCHW, decoded(root, "test", 3))


def test_only_images_in_class_folders_count(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(noise(SIZE, SIZE), root / "train" / "dog" / "LOUD.PNG")
    capsys.readouterr()
    FolderImages(configured(root))
    assert capsys.readouterr().err == ""
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / "cat" / "old").mkdir()
    for name in ("1.jfif", "2.JFIF"):
        (root / "train" / "dog" / name).write_text("another format")
    (root / "train" / "list.png").write_text("not in a class")
    (root / "train" / "empty").mkdir()
    save(noise(SIZE, SIZE), root / "train" / ".ipynb_checkpoints" / "0.png")
    save(noise(SIZE, SIZE), root / "train" / "__MACOSX" / "0.png")
    save(noise(SIZE, SIZE), root / "train" / "dog" / "._0.png")
    assert folder_labels(configured(root)).train_N.tolist() == [0, 0, 0, 1, 1, 1, 1]
    FolderImages(configured(root))
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert (
        "left out 3 files of other kinds (.jfif 2, .txt 1), 1 folder inside class folders, 1 image outside of class "
        "folders, 3 hidden files or folders, 1 empty class folder (empty); an image counts" in error
    )


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("0.jfif", "1 file of other kinds (.jfif 1)"),
        ("noname", "1 file of other kinds (no suffix 1)"),
        ("deeper/0.png", "1 folder inside"),
        (".hidden.png", ""),
    ],
)
def test_a_class_does_not_vanish(root: Path, split: str, entry: str, found: str) -> None:
    save(noise(SIZE, SIZE), root / "train" / "emu" / "0.png")
    (root / split / "emu" / "0.png").unlink(missing_ok=True)
    file = root / split / "emu" / entry
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(SIZE, SIZE)).save(file, format="PNG")
    if not found:  # as in an empty folder, which is an error
        assert set(folder_labels(configured(root)).train_N.tolist()) == ({0, 1} if split == "train" else {0, 1, 2})
        return
    for read in (FolderImages, folder_labels):
        with pytest.raises(
            DataError, match="emu holds no image, but " + re.escape(found) + ".*class emu would be left"
        ):
            read(configured(root))


def test_val_stands_in_for_test(root: Path) -> None:
    before = decoded(root, "test", 0, 1, 2, 3)
    (root / "test").rename(root / "val")
    assert torch.equal(decoded(root, "test", 0, 1, 2, 3), before)


def test_test_is_preferred_to_val(root: Path) -> None:
    save(noise(SIZE, SIZE), root / "val" / "cat" / "0.png")
    assert len(folder_labels(configured(root)).test_N) == 4


@pytest.mark.parametrize(("width", "height"), [(40, 20), (16, 32), (32, 16), (8, 24), (24, 8), (4, 4), (64, 64)])
def test_other_sizes_equal_torchvisions_resize_and_centre_crop(root: Path, width: int, height: int) -> None:
    image = Image.fromarray(noise(width, height))
    save(image, root / "train" / "cat" / "0.png")
    expected = np.array(Compose([Resize(SIZE), CenterCrop(SIZE)])(image)).transpose(2, 0, 1)
    assert np.array_equal(decoded(root, "train", 0)[0].numpy(), expected)


@pytest.mark.parametrize(("width", "height"), [(17, 16), (16, 33), (50, 33), (1, 9), (31, 1)])
def test_every_size_becomes_the_wanted_one(root: Path, width: int, height: int) -> None:
    save(Image.new("RGB", (width, height), (9, 8, 7)), root / "train" / "cat" / "0.png")
    expected_CHW = torch.tensor([9, 8, 7], dtype=torch.uint8).view(3, 1, 1).expand(3, SIZE, SIZE)
    assert torch.equal(decoded(root, "train", 0)[0], expected_CHW)


def in_mode(mode: str) -> tuple[Image.Image, NDArray[np.uint8]]:
    """An image in this mode and the RGB pixels [H, W, 3] that it shows."""
    rgb = noise(SIZE, SIZE)
    grey = rgb[..., 0]
    if mode == "P":
        palette = noise(256, 1, 5)[0]
        image = Image.fromarray(grey)
        image.putpalette(palette.tobytes())
        return image, palette[grey]
    shown = {"RGBA": rgb, "1": np.where(grey >= 128, 255, 0).astype(np.uint8)}.get(mode, grey)
    stored = {"RGBA": np.dstack([rgb, grey]), "1": grey >= 128, "LA": np.dstack([grey, rgb[..., 1]])}.get(mode, grey)
    return Image.fromarray(stored), shown if shown.ndim == 3 else np.dstack([shown] * 3)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA"])
def test_every_mode_becomes_rgb(root: Path, mode: str) -> None:
    image, shown = in_mode(mode)
    assert image.mode == mode
    save(image, root / "train" / "cat" / "0.png")
    assert np.array_equal(decoded(root, "train", 0)[0].numpy(), shown.transpose(2, 0, 1))


def test_a_worker_gives_the_same_batches_and_tells_of_damage(root: Path) -> None:
    save(noise(SIZE, SIZE), root / "train" / "dog" / "zz.png")
    (root / "train" / "dog" / "zz.png").write_bytes(b"damaged")
    index_batches = [[5, 0], [1], [2, 3, 4], [0], [3]]
    wanted: list[tuple[Split, Tensor]] = [("train", torch.tensor(index)) for index in index_batches]
    batches: Iterator[Tensor] = FolderImages(configured(root, workers=1)).batches(
        [*wanted, ("train", torch.tensor([6]))]
    )
    for expected_BCHW in FolderImages(configured(root)).batches(wanted):
        assert torch.equal(next(batches), expected_BCHW)
    with pytest.raises(DataError, match=r"zz\.png cannot be read as an image: .*; remove or replace it"):
        next(batches)


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "folder"])
def test_a_file_that_is_no_image(root: Path, damage: str) -> None:
    path = root / "train" / "cat" / "1.png"
    content = {"text": b"GIF89a, or so it says", "empty": b"", "truncated": path.read_bytes()[:200], "folder": None}[
        damage
    ]
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=r"cat/1\.png cannot be read as an image: .*; remove or replace it"):
        decoded(root, "train", 0)


def test_a_file_with_too_many_pixels(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", SIZE * SIZE)
    save(noise(SIZE, SIZE + 1), root / "train" / "cat" / "0.png")
    assert len(decoded(root, "train", 1)) == 1
    with pytest.raises(DataError, match=r"cat/0\.png has 16 x 17 pixels; at most 256 are decoded"):
        decoded(root, "train", 0)


def test_a_link_that_points_outside(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    save(noise(SIZE, SIZE), outside)
    (root / "train" / "cat" / "link.png").symlink_to(outside)
    with pytest.raises(DataError, match=r"cat/link\.png is a link to .*secret\.png, outside of .*; copy the image"):
        folder_labels(configured(root))


def test_a_link_that_stays_inside(root: Path) -> None:
    (root / "train" / "cat" / "0.png").symlink_to(root / "train" / "dog" / "4.png")
    assert torch.equal(decoded(root, "train", 0), decoded(root, "train", 6))


@pytest.mark.parametrize("missing", ["train", "test"])
@pytest.mark.parametrize("read", [FolderImages, folder_labels])
def test_a_missing_folder(root: Path, missing: str, read: Any) -> None:
    (root / missing).rename(root / "elsewhere")
    with pytest.raises(
        DataError, match=rf"/{missing} does not exist; expected .*/train/CLASS/\*.png and .*/test/CLASS"
    ):
        read(configured(root))


def test_test_classes_that_training_lacks(root: Path) -> None:
    for name in ("emu", "ant"):
        save(noise(SIZE, SIZE), root / "test" / name / "0.png")
    with pytest.raises(DataError, match=r"the test folder has classes that the train folder lacks: ant, emu"):
        folder_labels(configured(root))


def test_a_single_class(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save(noise(SIZE, SIZE), tmp_path / split / "cat" / "0.png")
    with pytest.raises(DataError, match=r"only one class; expected at least 2"):
        folder_labels(configured(tmp_path))


def test_empty_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    with pytest.raises(DataError, match=r"train holds no images; expected .*train/CLASS/\*\.png"):
        folder_labels(configured(tmp_path))


def test_an_empty_test_folder(root: Path) -> None:
    (root / "test").rename(root / "elsewhere")
    (root / "test").mkdir()
    with pytest.raises(DataError, match=r"test holds no images; expected .*test/CLASS/\*\.png"):
        folder_labels(configured(root))


def test_an_image_that_would_grow_beyond_all_bounds(root: Path) -> None:
    save(np.zeros((300_000, 1, 3), dtype=np.uint8), root / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"cat/0\.png has 1 x 300000 pixels; at most 64,000,000 are decoded"):
        decoded(root, "train", 0)


@pytest.mark.parametrize(("kind", "mode"), [(np.uint16, "I;16"), (np.float32, "F")])
def test_pixels_of_more_than_8_bits(root: Path, kind: type, mode: str) -> None:
    path = root / "train" / "cat" / "0.tiff"
    Image.fromarray(np.full((SIZE, SIZE), 7, dtype=kind)).save(path)
    with pytest.raises(DataError, match=rf"cat/0\.tiff has pixels of mode {mode}; save it with 8 bits a channel"):
        decoded(root, "train", 0)


def test_a_class_folder_that_is_a_link_to_elsewhere(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "train" / "other").symlink_to(elsewhere)
    with pytest.raises(DataError, match=r"train/other is a link to .*, outside of .*; copy the images instead"):
        folder_labels(configured(root))


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_every_name_of_the_test_split(root: Path, name: str) -> None:
    (root / "test").rename(root / name)
    assert folder_labels(configured(root)).test_N.tolist() == [0, 0, 1, 1]


def with_metadata(root: Path, name: str, lines: dict[str, list[str]]) -> None:
    """The images of every split in one folder, and what is said of them."""
    for split, text in lines.items():
        for number, file in enumerate(sorted((root / split).rglob("*.png"))):
            (root / split / "images").mkdir(exist_ok=True)
            file.rename(root / split / "images" / f"{number}.png")
        (root / split / name).write_text("\n".join(text), encoding="utf-8")


CSV = {
    "train": ["file_name,label", "images/0.png,dog", "images/2.png,ant", 'images/1.png,"ant"'],
    "test": ["file_name,text,label", "images/0.png,a,dog"],
}
JSONL = {
    "train": [f'{{"file_name": "images/{number}.png", "label": {label}}}' for number, label in enumerate([10, 0, 2])],
    "test": ["", '{"file_name": "images/0.png", "label": "2"}'],
}


@pytest.mark.parametrize(
    ("name", "lines", "train", "test"),
    [("metadata.csv", CSV, [0, 0, 1], [1]), ("metadata.jsonl", JSONL, [0, 1, 2], [1])],
)
def test_labels_of_a_metadata_file(
    root: Path, name: str, lines: dict[str, list[str]], train: list[int], test: list[int]
) -> None:
    with_metadata(root, name, lines)
    labels, images = folder_labels(configured(root)), FolderImages(configured(root))
    assert labels.train_N.tolist() == train and labels.test_N.tolist() == test
    order = [1, 2, 0]  # by class, and in it by name; numbers sort as numbers
    cats_and_dogs = [1, 3, 5, 0, 2, 4]
    expected = [torch.from_numpy(noise(SIZE, SIZE, cats_and_dogs[number])).permute(2, 0, 1) for number in order]
    (found_BCHW,) = images.batches([("train", torch.arange(3))])
    assert torch.equal(found_BCHW, torch.stack(expected))


def test_a_metadata_file_without_labels_leaves_the_folders(root: Path) -> None:
    (root / "train" / "metadata.csv").write_text("file_name,text\ncat/0.png,a cat\n")
    assert folder_labels(configured(root)).train_N.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "file_name,label\n,cat", "image 1: file_name is ''; expected the path of an image below"),
        (
            "metadata.jsonl",
            '{"file_name": "cat/0.png"}\n\n{oops',
            "cannot be read: line 3: Expecting .*: column 2 .char 1",
        ),
        ("metadata.csv", "file_name,label\n../a.png,cat", r"file_name is '\.\./a\.png'; expected the path of an image"),
        ("metadata.csv", "file_name,label\n/a.png,cat", "file_name is '/a.png'; expected the path of an image below"),
        (
            "metadata.csv",
            "file_name,label\ncat/1.png,",
            "image 1: label is ''; expected the name of a class, or its num",
        ),
        ("metadata.csv", "file_name,label\na.png,cat", "a.png is no image here; expected a file with a suffix of .png"),
        ("metadata.csv", "file_name,label\nmetadata.csv,cat", "metadata.csv is no image here; expected a file with a"),
        (
            "metadata.csv",
            "file_name,label\ncat/1.png,cat\ncat/1.png,cat\ncat/./1.png,dog",
            "cat/1.png has the labels cat and dog; expected one label an image",
        ),
        ("metadata.csv", b"file_name,label\n\xff,cat", "metadata.csv cannot be read: .*; expected a line an image"),
        (
            "metadata.jsonl",
            '{"file_name": 1, "label": 0}',
            "image 1: file_name is 1; expected the path of an image bel",
        ),
        ("metadata.jsonl", '{"file_name": "cat/1.png", "label": -1}', "label is -1; expected the name of a class, or"),
        ("metadata.jsonl", '{"file_name": "cat/1.png", "label": true}', "label is True; expected the name of a class"),
        ("metadata.jsonl", '{"file_name": "cat/1.png", "label": [1]}', r"label is \[1\]; expected the name of a class"),
        ("metadata.jsonl", '{"label": ', "metadata.jsonl cannot be read: .*; expected a line an image"),
        ("metadata.jsonl", "[1]", "metadata.jsonl holds a line that is no object; expected lines such as"),
        ("metadata.jsonl", "[" * 100_000, "metadata.jsonl cannot be read: .*; expected a line an image"),
        ("metadata.csv", 'file_name,label\n"' + "a" * 200_000 + '",b', "metadata.csv cannot be read: field larger"),
    ],
)
def test_metadata_that_cannot_be_followed(root: Path, name: str, text: str | bytes, message: str) -> None:
    (root / "train" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        folder_labels(configured(root))


def test_a_metadata_file_that_is_too_large(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "MAX_BYTES", 10)
    (root / "train" / "metadata.csv").write_text("file_name,label\n")
    with pytest.raises(
        DataError, match="metadata.csv cannot be read: it has more than 10 bytes; expected a line an ima"
    ):
        folder_labels(configured(root))


def test_a_metadata_file_names_no_link_that_points_outside(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    save(noise(SIZE, SIZE), outside)
    (root / "train" / "link.png").symlink_to(outside)
    (root / "train" / "metadata.csv").write_text("file_name,label\nlink.png,cat\n")
    with pytest.raises(DataError, match=r"train/link\.png is a link to .*secret\.png, outside of .*; copy the image"):
        folder_labels(configured(root))
