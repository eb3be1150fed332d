"""Data sets of one's own in a NumPy archive: train_x, train_y, test_x, test_y. Imports no torch, so that a wrong one
is refused in the first second."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from bllpipe.errors import DataError
from bllpipe.run.data.spec import DataSpec, check_labels

NAMES = ("train_x", "train_y", "test_x", "test_y")
MAX_CLASSES = 1_000_000
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class Archive:
    """An archive whose labels and sizes are right; its images are read when they are asked for."""

    path: str
    file: Any
    train_N: Any
    test_N: Any
    spec: DataSpec

    def images(self, name: str) -> Any:
        """uint8 [N, H, W] or [N, H, W, C]; floats must be in 0..1 and are scaled."""
        array, what = _array(self.file, name, self.path), f"{self.path}: {name}"
        return _from_floats(array, what) if array.dtype.kind == "f" else array

    def check_floats(self) -> None:
        """Raises DataError for NaN, Inf and floats beyond 0..1; integers are what they have to be by their type."""
        for name in ("train_x", "test_x"):
            if _header(self.file, name, self.path)[1].kind == "f":
                self.images(name)


def open_archive(path: str) -> Archive:
    """Checks labels, shapes and types; DataError says which array is wrong and how."""
    file = _open(path)
    train_N, test_N = _labels(file, "train_y", path), _labels(file, "test_y", path)
    classes = check_labels(train_N, test_N, path)
    train, test = (_image_shape(file, name, path) for name in ("train_x", "test_x"))
    for split, shape, labels_N in (("train", train, train_N), ("test", test, test_N)):
        if shape[0] != len(labels_N):
            raise DataError(f"{path}: {split}_x has {shape[0]} images, but {split}_y {len(labels_N)} labels")
    if train[1:] != test[1:]:
        raise DataError(
            f"{path}: training images are {list(train[1:])}, test images {list(test[1:])} "
            f"(channels, height, width); needed is one shape"
        )
    return Archive(path, file, train_N, test_N, DataSpec(train[0], test[0], train[1:], classes))


def _open(path: str) -> Any:
    if not Path(path).is_file():
        found = "is a folder" if Path(path).is_dir() else "does not exist"
        raise DataError(f"{path} {found}; needed is a NumPy archive with {', '.join(NAMES)}")
    try:
        file = np.load(path, allow_pickle=False)
    except UNREADABLE as error:
        raise DataError(f"{path} is no NumPy archive: {error}; write one with numpy.savez") from error
    if not hasattr(file, "files"):
        raise DataError(f"{path} holds a single array; needed is an archive with {', '.join(NAMES)}")
    missing = [name for name in NAMES if name not in file.files]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it has {', '.join(file.files) or 'nothing'}")
    return file


def _array(file: Any, name: str, path: str) -> Any:
    try:
        array = file[name]
    except UNREADABLE as error:
        raise DataError(f"{path}: {name} cannot be read: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {name} is no NumPy array; write the archive with numpy.savez")
    return array


def _labels(file: Any, name: str, path: str) -> Any:
    """int64 [N]."""
    array = _array(file, name, path)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"{path}: {name} is {array.dtype}{list(array.shape)}; needed are whole numbers [N]")
    if array.size and array.max() >= MAX_CLASSES:
        raise DataError(f"{path}: {name} has the label {array.max()}; needed are classes numbered from 0")
    return array.astype(np.int64)


def _header(file: Any, name: str, path: str) -> tuple[tuple[int, ...], Any]:
    """Shape and type of an array that stays on disk."""
    try:
        with file.zip.open(f"{name}.npy") as stream:
            shape, _, dtype = HEADERS[npy.read_magic(stream)](stream)
    except (*UNREADABLE, KeyError) as error:
        raise DataError(f"{path}: {name} cannot be read: {error}") from error
    return shape, dtype


def _image_shape(file: Any, name: str, path: str) -> tuple[int, int, int, int]:
    """(N, C, H, W)."""
    shape, dtype = _header(file, name, path)
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)) or 0 in shape[1:]:
        raise DataError(f"{path}: {name} is {list(shape)}; needed is [N, H, W] or [N, H, W, C] with 1, 3 or 4 channels")
    if dtype != np.uint8 and dtype.kind != "f":
        raise DataError(f"{path}: {name} is {dtype}; needed is uint8, or floats from 0 to 1")
    count, height, width, channels = (*shape, 1)[:4]
    return count, channels, height, width


def _from_floats(array: Any, what: str) -> Any:
    """Floats in 0..1 as uint8."""
    bad = ~np.isfinite(array)
    if bad.any():
        first = int(np.argwhere(bad)[0][0])
        raise DataError(f"{what} holds {int(bad.sum())} values that are NaN or Inf, the first in image {first}")
    if array.size and (array.min() < 0 or array.max() > 1):
        raise DataError(f"{what} has floats from {array.min():g} to {array.max():g}; needed are 0 to 1, or uint8")
    return np.rint(array * 255).astype(np.uint8)
