"""NumPy archives: what is read from good ones, and the error for every defect of a bad one."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bllpipe.data.catalog import DataSpec
from bllpipe.data.npz import open_archive
from bllpipe.data.registry import read_arrays, read_labels
from bllpipe.errors import DataError

Content = dict[str, NDArray[Any]]


def good() -> Content:
    """12 training and 5 test images of 6 x 4 pixels in three classes."""
    draws = np.random.default_rng(0)
    return {
        "train_x": draws.integers(0, 256, (12, 6, 4, 3), dtype=np.uint8),
        "train_y": np.arange(12) % 3,
        "test_x": draws.integers(0, 256, (5, 6, 4, 3), dtype=np.uint8),
        "test_y": np.arange(5) % 3,
    }


def archive(folder: Path, changes: Mapping[str, NDArray[Any] | None]) -> str:
    """A good archive with some arrays replaced, or left out (None)."""
    content = {name: array for name, array in {**good(), **changes}.items() if array is not None}
    np.savez(folder / "set.npz", **content)  # type: ignore[arg-type]  # NumPy's types take a dict for allow_pickle
    return str(folder / "set.npz")


def floats(fill: float, image: int) -> NDArray[Any]:
    array = np.full((12, 6, 4, 3), 0.5, dtype=np.float32)
    array[image, 2, 1, 0] = fill
    return array


def test_images_become_channels_first_and_labels_int64(tmp_path: Path) -> None:
    arrays, content = read_arrays(archive(tmp_path, {})), good()
    assert arrays.train_NCHW.dtype == arrays.test_NCHW.dtype == torch.uint8
    assert arrays.train_N.dtype == arrays.test_N.dtype == torch.int64
    assert arrays.train_NCHW.is_contiguous() and arrays.num_classes == 3
    assert np.array_equal(arrays.train_NCHW.numpy(), content["train_x"].transpose(0, 3, 1, 2))
    assert np.array_equal(arrays.test_NCHW.numpy(), content["test_x"].transpose(0, 3, 1, 2))
    assert arrays.train_N.tolist() == content["train_y"].tolist()
    assert arrays.test_N.tolist() == content["test_y"].tolist()


def test_images_without_channels_get_one(tmp_path: Path) -> None:
    content = good()
    arrays = read_arrays(archive(tmp_path, {name: content[name][..., 0] for name in ("train_x", "test_x")}))
    assert arrays.train_NCHW.shape == (12, 1, 6, 4) and arrays.test_NCHW.shape == (5, 1, 6, 4)
    assert np.array_equal(arrays.train_NCHW[:, 0].numpy(), content["train_x"][..., 0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_from_0_to_1_equal_the_uint8_version(tmp_path: Path, dtype: Any) -> None:
    every_value = np.arange(12 * 24, dtype=np.int64).reshape(12, 6, 4) % 256
    exact, test_x = every_value.astype(np.uint8), good()["test_x"][..., 0]
    scaled = {"train_x": (exact / 255).astype(dtype), "test_x": (test_x / 255).astype(dtype)}
    arrays = read_arrays(archive(tmp_path, scaled))
    assert np.array_equal(arrays.train_NCHW[:, 0].numpy(), exact)
    assert np.array_equal(arrays.test_NCHW[:, 0].numpy(), test_x)


@pytest.mark.parametrize(
    ("value", "pixel"), [(0.0, 0), (0.0019, 0), (0.0021, 1), (0.997, 254), (0.999, 255), (1.0, 255)]
)
def test_floats_become_the_nearest_value(tmp_path: Path, value: float, pixel: int) -> None:
    assert read_arrays(archive(tmp_path, {"train_x": floats(value, 3)})).train_NCHW[3, 0, 2, 1] == pixel


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, ">i4"])
def test_labels_of_any_whole_numbers_are_read_alike(tmp_path: Path, dtype: Any) -> None:
    path = archive(tmp_path, {"train_y": good()["train_y"].astype(dtype)})
    labels, arrays = read_labels(path), read_arrays(path)
    assert labels.train_N.tolist() == arrays.train_N.tolist() == [0, 1, 2] * 4
    assert labels.test_N.tolist() == arrays.test_N.tolist()
    assert labels.num_classes == arrays.num_classes == 3


LABEL_DEFECTS: dict[str, tuple[dict[str, NDArray[Any] | None], str]] = {
    "no labels": ({"train_y": None, "test_y": None}, r"lacks train_y, test_y; it has train_x, test_x"),
    "floats": ({"train_y": np.zeros(12)}, r"train_y: expected whole numbers \[N\], .* got float64 \[12\]"),
    "truth values": ({"test_y": np.ones(5, dtype=bool)}, r"test_y: expected whole numbers \[N\], .* got bool \[5\]"),
    "one-hot": ({"train_y": np.eye(12, dtype=np.int64)}, r"train_y: .* got int64 \[12, 12\]; use labels.argmax\(1\)"),
    "negative": ({"train_y": np.arange(12) % 3 - 1}, r"train label -1; expected classes numbered from 0"),
    "negative in the test": ({"test_y": np.array([0, -7, 1, 2, 0])}, r"test label -7; expected classes numbered"),
    "test label beyond": ({"test_y": np.array([0, 1, 2, 3, 0])}, r"test label 3, but training labels only go up to 2"),
    "one class": ({"train_y": np.zeros(12, int), "test_y": np.zeros(5, int)}, r"only one class; expected at least 2"),
    "empty training": ({"train_y": np.zeros(0, int)}, r"the train split has no images; expected at least one"),
    "empty test": ({"test_y": np.zeros(0, int)}, r"the test split has no images; expected at least one"),
    "pickled": (
        {"train_y": np.array(["a"] * 12, dtype=object)},
        r"train_y holds Python objects, which are never loaded; save plain",
    ),
}
IMAGE_DEFECTS: dict[str, tuple[dict[str, NDArray[Any] | None], str]] = {
    "no training images": ({"train_x": None}, r"lacks train_x; it has train_y, test_x, test_y"),
    "no test images": ({"test_x": None}, r"lacks test_x; it has train_x, train_y, test_y"),
    "flat": ({"train_x": np.zeros((12, 72), np.uint8)}, r"train_x is \[12, 72\]; expected \[N, H, W\] or"),
    "videos": ({"test_x": np.zeros((5, 2, 6, 4, 3), np.uint8)}, r"test_x is \[5, 2, 6, 4, 3\]; expected \[N, H, W\]"),
    "channels first": ({"train_x": np.zeros((12, 3, 6, 8), np.uint8)}, r"\[12, 3, 6, 8\]; .* 1, 3 or 4 channels"),
    "int64": ({"train_x": np.zeros((12, 6, 4, 3), int)}, r"train_x is int64; expected uint8, or floats from 0 to 1"),
    "truth values": ({"test_x": np.zeros((5, 6, 4, 3), bool)}, r"test_x is bool; expected uint8"),
    "fewer images": ({"train_x": good()["train_x"][:11]}, r"train_x has 11 images, but train_y 12 labels"),
    "more images": ({"test_x": good()["train_x"]}, r"test_x has 12 images, but test_y 5 labels"),
    "no pixels": ({"test_x": np.zeros((5, 0, 4, 3), np.uint8)}, r"test_x is \[5, 0, 4, 3\]; expected \[N, H, W\] or"),
    "no images at all": ({"test_x": good()["test_x"][:0]}, r"test_x has 0 images, but test_y 5 labels"),
    "other size": ({"test_x": np.zeros((5, 6, 5, 3), np.uint8)}, r"images are \[3, 6, 4\], test images \[3, 6, 5\]"),
    "other channels": ({"test_x": np.zeros((5, 6, 4), np.uint8)}, r"images are \[3, 6, 4\], test images \[1, 6, 4\]"),
    "NaN": ({"train_x": floats(np.nan, 7)}, r"train_x holds 1 values that are NaN or Inf, the first in image 7"),
    "Inf": ({"train_x": floats(-np.inf, 11)}, r"train_x holds 1 values that are NaN or Inf, the first in image 11"),
    "bytes as floats": (
        {"train_x": floats(255, 3)},
        r"train_x has floats from 0.5 to 255; expected 0 to 1, or uint8",
    ),
    "normalised": ({"train_x": floats(-1.5, 0)}, r"train_x has floats from -1.5 to 0.5; expected 0 to 1, or uint8"),
    "pickled": (
        {"train_x": np.full((12, 6, 4, 3), "a", object)},
        r"train_x holds Python objects, which are never loaded",
    ),
}


@pytest.mark.parametrize("defect", LABEL_DEFECTS)
@pytest.mark.parametrize("read", [read_arrays, read_labels])
def test_defects_of_labels(tmp_path: Path, defect: str, read: Any) -> None:
    changes, message = LABEL_DEFECTS[defect]
    with pytest.raises(DataError, match=rf"set\.npz.*{message}"):
        read(archive(tmp_path, changes))


@pytest.mark.parametrize("defect", IMAGE_DEFECTS)
def test_defects_of_images(tmp_path: Path, defect: str) -> None:
    changes, message = IMAGE_DEFECTS[defect]
    with pytest.raises(DataError, match=rf"set\.npz.*{message}"):
        read_arrays(archive(tmp_path, changes))


def test_labels_alone_are_read_without_looking_at_the_pixels(tmp_path: Path) -> None:
    assert len(read_labels(archive(tmp_path, {"train_x": floats(np.nan, 0)})).train_N) == 12


def test_the_sizes_are_known_without_the_pixels(tmp_path: Path) -> None:
    assert open_archive(archive(tmp_path, {"train_x": floats(np.nan, 0)})).spec == DataSpec(12, 5, (3, 6, 4), 3)
    grey = {name: good()[name][..., 0] for name in ("train_x", "test_x")}
    assert open_archive(archive(tmp_path, grey)).spec == DataSpec(12, 5, (1, 6, 4), 3)


@pytest.mark.parametrize("defect", ["NaN", "Inf", "bytes as floats", "normalised"])
@pytest.mark.parametrize("name", ["train_x", "test_x"])
def test_floats_are_checked_on_request(tmp_path: Path, defect: str, name: str) -> None:
    open_archive(archive(tmp_path, {"train_x": floats(1, 0), "test_x": floats(0, 0)[:5]})).check_floats()
    changes, message = IMAGE_DEFECTS[defect]
    array = changes["train_x"]
    assert array is not None
    found = open_archive(archive(tmp_path, {name: array, f"{name[:-1]}y": np.arange(12) % 3}))
    with pytest.raises(DataError, match=message.replace("train_x", name)):
        found.check_floats()


@pytest.mark.parametrize("read", [read_arrays, read_labels])
@pytest.mark.parametrize("what", ["nothing", "folder"])
def test_a_file_that_does_not_exist(tmp_path: Path, what: str, read: Any) -> None:
    if what == "folder":
        (tmp_path / "set.npz").mkdir()
    found = "is a folder" if what == "folder" else "does not exist"
    with pytest.raises(DataError, match=rf"set\.npz {found}; expected a NumPy archive with train_x, train_y,"):
        read(str(tmp_path / "set.npz"))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 and no more"])
def test_a_file_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"set\.npz is no NumPy archive: .*; write one with numpy\.savez"):
        read_arrays(str(tmp_path / "set.npz"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_archive(tmp_path: Path, share: float) -> None:
    path = Path(archive(tmp_path, {}))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"set\.npz is no NumPy archive: .*; write one with numpy\.savez"):
        read_arrays(str(path))


def test_a_flipped_bit_among_the_pixels(tmp_path: Path) -> None:
    path = Path(archive(tmp_path, {}))
    content = bytearray(path.read_bytes())
    content[content.index(good()["train_x"].tobytes()) + 50] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.npz: train_x cannot be read: Bad CRC-32"):
        read_arrays(str(path))


def test_a_single_array(tmp_path: Path) -> None:
    np.save(tmp_path / "single.npy", good()["train_x"])
    with pytest.raises(DataError, match=r"single\.npy holds a single array; expected an archive with train_x"):
        read_arrays(str(tmp_path / "single.npy"))


def test_an_archive_without_arrays(tmp_path: Path) -> None:
    zipfile.ZipFile(tmp_path / "set.npz", "w").close()
    with pytest.raises(DataError, match=r"set\.npz lacks train_x, train_y, test_x, test_y; it has nothing"):
        read_arrays(str(tmp_path / "set.npz"))


def test_a_damaged_compressed_archive(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "set.npz", **good())  # type: ignore[arg-type]  # as above
    content = bytearray((tmp_path / "set.npz").read_bytes())
    middle = content.index(b"train_y.npy") + 40
    content[middle : middle + 30] = b"\xff" * 30
    (tmp_path / "set.npz").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"train_y cannot be read"):
        read_arrays(str(tmp_path / "set.npz"))


def test_members_that_are_no_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as file:
        for name in good():
            file.writestr(name, b"hello")
    with pytest.raises(DataError, match=r"set\.npz lacks train_x, train_y, test_x, test_y; it has nothing"):
        read_arrays(str(tmp_path / "set.npz"))


@pytest.mark.parametrize("label", [10**12, 2**63 + 5])
def test_a_label_beyond_all_bounds(tmp_path: Path, label: int) -> None:
    labels = np.array([0, 1, 2] * 3 + [0, 1, label], dtype=np.uint64)
    with pytest.raises(DataError, match=rf"train_y has the label {label}; expected classes numbered from 0"):
        read_labels(archive(tmp_path, {"train_y": labels}))
