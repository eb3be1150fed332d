"""MNIST and CIFAR from files in their original formats: wherever they lie, compressed in any way, verified by what is
inside. Small sets stand in for the real ones, which are read where they are."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bllpipe.config.schema import DataConfig
from bllpipe.data import original_files, originals
from bllpipe.data.catalog import PUBLISHED
from bllpipe.data.original_files import CIFAR_FORMS, IDX_PARTS, IDX_SHA256, find_idx, is_there
from bllpipe.data.originals import records_sha256
from bllpipe.data.registry import load_arrays, load_images, load_labels, original_set, stored
from bllpipe.errors import DataError
from tests.support.original_files import binary_batch, few, idx_files, python_batch, write_tar

GRIDS = Path(__file__).parents[4] / "shared" / "data"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
GREY = {"train": few(0, 12, 28, 28), "test": few(1, 6, 28, 28)}
COLOURED = {"train": few(2, 10, 3072), "test": few(3, 4, 3072)}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda content: gzip.compress(content, 1),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.fixture(autouse=True)
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small sets are the published ones."""
    files = idx_files(GREY)
    digests = [hashlib.sha256(files[name]).hexdigest() for name in sorted(files, key=_place)]
    monkeypatch.setitem(IDX_SHA256, "fashion_mnist", tuple(digests))
    for name in CIFAR_FORMS:
        known = {split: records_sha256(*pair) for split, pair in COLOURED.items()}
        monkeypatch.setitem(originals.CIFAR_SHA256, name, known)


def _place(name: str) -> int:
    return next(number for number, part in enumerate(IDX_PARTS) if name.startswith(part))


def write_idx(folder: Path, suffix: str = "", dot: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in idx_files(GREY).items():
        name = name.replace("-idx", ".idx") if dot else name
        (folder / f"{name}{suffix}").write_bytes(PACKERS[suffix](content))


def cifar(name: str, form: str) -> dict[str, bytes]:
    """The files of one form: CIFAR-10 in batches of two images."""
    parts = dict.fromkeys(("train", "test"), 1) if name == "cifar100" else {"train": 5, "test": 1}
    files = {}
    for split, count in parts.items():
        images, labels = (np.array_split(each, count) for each in COLOURED[split])
        names = {
            "cifar10": [f"data_batch_{number + 1}" for number in range(5)] if split == "train" else ["test_batch"],
            "cifar100": [split],
        }[name]
        for file, images_NP, label_N in zip(names, images, labels, strict=True):
            coarse = np.zeros_like(label_N)
            if form == "binary":
                both = (coarse, label_N) if name == "cifar100" else (label_N,)
                files[f"{file}.bin"] = binary_batch(images_NP, *both)
            else:
                keys = {"coarse_labels": coarse, "fine_labels": label_N} if name == "cifar100" else {"labels": label_N}
                files[file] = python_batch(images_NP, **{key: each.tolist() for key, each in keys.items()})
    return files


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


def assert_same(name: str, path: Path, splits: dict[str, Any]) -> None:
    arrays = original_set(name, str(path))
    for images, labels, split in (
        (arrays.train_NCHW, arrays.train_N, "train"),
        (arrays.test_NCHW, arrays.test_N, "test"),
    ):
        assert np.array_equal(images.flatten(1).numpy(), splits[split][0].reshape(len(images), -1))
        assert labels.tolist() == splits[split][1].tolist()
    assert images.shape[1:] == PUBLISHED[name].image_shape and arrays.num_classes == PUBLISHED[name].num_classes
    assert stored(name, str(path)).num_test == len(arrays.test_N)


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("place", [".", "FashionMNIST/raw", "usr/share/datasets/fashion-mnist"])
def test_idx_files_lie_anywhere_in_any_form(tmp_path: Path, suffix: str, place: str) -> None:
    write_idx(tmp_path / place, suffix)
    assert is_there("fashion_mnist", str(tmp_path))
    assert_same("fashion_mnist", tmp_path, GREY)


def test_dots_in_their_names_and_both_forms_side_by_side(tmp_path: Path) -> None:
    write_idx(tmp_path, dot=True)
    write_idx(tmp_path, ".gz")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"half of a download")
    assert_same("fashion_mnist", tmp_path, GREY)


def test_a_configuration_reads_them(tmp_path: Path) -> None:
    write_idx(tmp_path, ".gz")
    data = DataConfig(name="fashion_mnist", path=str(tmp_path))
    assert load_labels(data, 0).train_N.tolist() == load_arrays(data, 0).train_N.tolist()
    assert load_images(data, 0).mean == [0.2860]


def test_mnist_beside_fashion_mnist(tmp_path: Path) -> None:
    """Both have the same names; what is inside decides."""
    write_idx(tmp_path / "A" / "raw")
    assert original_files.is_there("mnist", str(tmp_path))  # perhaps: their content is not read for this
    with pytest.raises(DataError, match="mnist is missing: its original files are not in .*; use bllpipe data fetch"):
        stored("mnist", str(tmp_path))
    damaged = tmp_path / "0"
    write_idx(damaged)
    (damaged / "train-images-idx3-ubyte").write_bytes(b"")
    assert_same("fashion_mnist", tmp_path, GREY)


def test_the_digests_of_mnist_are_those_of_the_uncompressed_files() -> None:
    """They are known from other projects, which agree; the files could not be had for this test."""
    assert [len(digest) for digest in IDX_SHA256["mnist"]] == [64] * 4
    assert PUBLISHED["mnist"].image_shape == (1, 28, 28)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b half", "train-images-idx3-ubyte is damaged, or of another set: .*; remove it, or name another"),
        (b"BZh9 half", "is damaged, or of another set"),
        (b"\xfd7zXZ half", "is damaged, or of another set"),
        (gzip.compress(bytes(2 << 20)), "it has more than 1,048,576 bytes"),
        (b"", "the SHA-256 of what is inside is not that of fashion_mnist"),
        (b"\0\0\x08\x03", "the SHA-256 of what is inside is not that of fashion_mnist"),
    ],
)
def test_damaged_idx_files(tmp_path: Path, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(original_files, "MAX_BYTES", 1 << 20)
    write_idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=message):
        original_set("fashion_mnist", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"", "does not begin as an IDX file of bytes with 3 dimensions"),
        ("train-labels-idx1-ubyte", b"\0\0\x0d\x01" + bytes(8), "does not begin as an IDX file of bytes with 1 dimen"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\x01\xff\xff\xff\xff", r"it has 0 bytes for the shape \[4294967295\]"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\1\1", "it has 1 labels for 12 images"),
    ],
)
def test_idx_files_that_contradict_themselves(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_idx(tmp_path)
    (files,) = find_idx(str(tmp_path))
    contents = {part: path.read_bytes() for part, path in files.items()}
    contents[name.partition("-idx")[0]] = content
    with pytest.raises(DataError, match=message):
        originals.idx_arrays(contents, files)


@pytest.mark.parametrize("name", CIFAR_FORMS)
@pytest.mark.parametrize("form", ["binary", "python"])
@pytest.mark.parametrize("kind", ["folder", "w:gz", "w", "w:xz", "archive alone"])
def test_cifar_in_every_form(tmp_path: Path, name: str, form: str, kind: str) -> None:
    files, archive = cifar(name, form), f"cifar-{name[5:]}-{form}"
    path = tmp_path
    if kind == "folder":
        write_folder(tmp_path / "deep" / "cifar-batches", files)
    else:
        mode = "w:gz" if kind == "archive alone" else kind
        written = write_tar(tmp_path / f"{archive}.tar{mode[1:].replace(':', '.')}", mode, files)
        path = written if kind == "archive alone" else tmp_path
    assert is_there(name, str(path))
    assert_same(name, path, COLOURED)


def test_unpacked_files_come_before_archives_and_binary_ones_before_pickles(tmp_path: Path) -> None:
    write_tar(tmp_path / "cifar-10-binary.tar.gz", "w:gz", {"readme.html": b""})
    write_folder(tmp_path / "cifar-10-batches-py", dict.fromkeys(cifar("cifar10", "python"), b""))
    write_folder(tmp_path / "cifar-10-batches-bin", cifar("cifar10", "binary"))
    assert_same("cifar10", tmp_path, COLOURED)


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        (
            "binary",
            {"data_batch_2.bin": b"abc"},
            "data_batch_2.bin is damaged, .*it has 3 bytes, which are no records of 3",
        ),
        ("binary", {"test_batch.bin": bytes(3073)}, "its test images or labels are not those of cifar10"),
        ("python", {"test_batch": b"abc"}, "test_batch cannot be read: .*from which nothing is executed"),
        ("python", {"test_batch": python_batch(np.zeros((1, 5), np.uint8))}, r"an array data of bytes \[N, 3072\]"),
        ("python", {"test_batch": python_batch(np.zeros((1, 3072), np.uint8))}, "a list labels of 1 whole numbers"),
        ("python", {"test_batch": b"\x80\x02}U\x04dataK\x01s."}, r"an array data of bytes \[N, 3072\]"),
    ],
)
def test_damaged_batches(tmp_path: Path, form: str, changes: dict[str, bytes], message: str) -> None:
    write_folder(tmp_path / "cifar", {**cifar("cifar10", form), **changes})
    with pytest.raises(DataError, match=message):
        original_set("cifar10", str(tmp_path))


def test_archives_that_lack_a_file_or_hold_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = cifar("cifar10", "binary")
    path = write_tar(tmp_path / "cifar-10-binary.tar", "w", dict(list(files.items())[1:]))
    with pytest.raises(DataError, match=r"lacks data_batch_1\.bin; expected the archive cifar-10-binary\.tar\.gz"):
        original_set("cifar10", str(path))
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar is damaged, or of another set: [^\n]*;"):
        original_set("cifar10", str(path))
    write_tar(path, "w", files)
    monkeypatch.setattr(original_files, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match=r"data_batch_1\.bin is too much"):
        original_set("cifar10", str(path))


def test_the_search_is_bounded(tmp_path: Path) -> None:
    write_idx(tmp_path.joinpath(*"abcdefg"))
    assert not is_there("fashion_mnist", str(tmp_path)) and is_there("fashion_mnist", str(tmp_path / "a"))


def test_the_order_of_records_does_not_matter_and_everything_else_does() -> None:
    images, labels = COLOURED["train"]
    order = np.random.default_rng(0).permutation(len(labels))
    assert records_sha256(images[order], labels[order]) == records_sha256(images, labels)
    assert records_sha256(images[order], labels) != records_sha256(images, labels)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_debians_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert stored("fashion_mnist", str(DEBIAN)) == PUBLISHED["fashion_mnist"]


@pytest.mark.skipif(not (GRIDS / "cifar10").is_dir(), reason="needs the lossless grids of CIFAR next to the repository")
@pytest.mark.parametrize(("name", "form"), [("cifar10", "binary"), ("cifar100", "python")])
def test_the_whole_real_set(name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.undo()
    for split, count in (("train", 5), ("test", 1)):
        parts = []
        for number in range(count):
            with Image.open(GRIDS / name / f"{split}_{number}.webp") as grid:
                pixels = np.array(grid.convert("RGB"))
            parts.append(pixels.reshape(100, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(10_000, 3072))
        labels = np.load(GRIDS / name / "labels.npz")[split].astype(np.uint8)
        monkeypatch.setitem(COLOURED, split, (np.concatenate(parts), labels))
    write_folder(tmp_path / "cifar", cifar(name, form))
    assert stored(name, str(tmp_path)) == PUBLISHED[name]
