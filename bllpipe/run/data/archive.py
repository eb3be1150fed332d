"""Data sets of one's own in a NumPy archive: train_x, train_y, test_x, test_y. Imports no torch, so that a wrong one
is refused in the first second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bllpipe.errors import DataError
from bllpipe.run.data.arrays import array_form, check_finite, check_label_form, label_array
from bllpipe.run.data.members import Members, free_bytes
from bllpipe.run.data.spec import DataSpec, check_labels

NAMES = ("train_x", "train_y", "test_x", "test_y")
MAGIC = b"\x93NUMPY"  # of a single array


@dataclass(frozen=True)
class Archive:
    """An archive whose labels and sizes are right; its images are read when they are asked for."""

    path: str
    members: Members
    train_N: Any
    test_N: Any
    spec: DataSpec

    def images(self, name: str) -> Any:
        """uint8 [N, H, W] or [N, H, W, C]; floats must be in 0..1 and are scaled."""
        array = self.members.array(name)
        return _from_floats(array, f"{self.path}: {name}") if array.dtype.kind == "f" else array

    def check_floats(self) -> None:
        """Raises DataError for NaN, Inf and floats beyond 0..1; integers are what they have to be by their type."""
        for name in ("train_x", "test_x"):
            if self.members.member(name).dtype.kind == "f":
                self.images(name)


def open_archive(path: str) -> Archive:
    """Checks labels, shapes, types, and that memory can hold it all; DataError says which array is wrong and how."""
    members = _open(path)
    _check_memory(members)
    train, test = (_image_shape(members, name) for name in ("train_x", "test_x"))
    train_N, test_N = _labels(members, "train_y"), _labels(members, "test_y")
    classes = check_labels(train_N, test_N, path)
    for split, shape, labels_N in (("train", train, train_N), ("test", test, test_N)):
        if shape[0] != len(labels_N):
            raise DataError(f"{path}: {split}_x has {shape[0]} images, but {split}_y {len(labels_N)} labels")
    if train[1:] != test[1:]:
        raise DataError(
            f"{path}: training images are {list(train[1:])}, test images {list(test[1:])} "
            f"(channels, height, width); needed is one shape"
        )
    return Archive(path, members, train_N, test_N, DataSpec(train[0], test[0], train[1:], classes))


def _open(path: str) -> Members:
    if not Path(path).is_file():
        kind = "is a folder" if Path(path).is_dir() else "is a pipe or a device"
        found = kind if Path(path).exists() else "does not exist"
        raise DataError(f"{path} {found}; needed is a NumPy archive with {', '.join(NAMES)}")
    if _starts_as_array(path):
        raise DataError(f"{path} holds a single array; needed is an archive with {', '.join(NAMES)}")
    members = Members(path)
    missing = [name for name in NAMES if name not in members.names]
    if missing:
        found = ", ".join(members.names[:9]) or "nothing"
        raise DataError(f"{path} lacks {', '.join(missing)}; it has {found:.300}")
    return members


def _starts_as_array(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; needed is a NumPy archive") from error


def _check_memory(members: Members) -> None:
    """Raises DataError when the arrays would not fit into what is free now."""
    needed, free = sum(members.member(name).bytes for name in NAMES), free_bytes()
    if free is not None and needed > free:
        raise DataError(
            f"{members.path} unfolds to {needed:,} bytes, but only {free:,} of memory are free; needed is an archive "
            f"that fits, or data.name=imagefolder, which reads a batch at a time"
        )


def _labels(members: Members, name: str) -> Any:
    """int64 [N]."""
    found, what = members.member(name), f"{members.path}: {name}"
    check_label_form(found.dtype.kind, found.shape, array_form(found), what)
    return label_array(members.array(name), what)


def _image_shape(members: Members, name: str) -> tuple[int, int, int, int]:
    """(N, C, H, W)."""
    found = members.member(name)
    shape, dtype = found.shape, found.dtype
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)) or 0 in shape[1:]:
        raise DataError(
            f"{members.path}: {name} is {list(shape)}; needed is [N, H, W] or [N, H, W, C] with 1, 3 or 4 channels"
        )
    if dtype != np.uint8 and dtype.kind != "f":
        raise DataError(f"{members.path}: {name} is {dtype}; needed is uint8, or floats from 0 to 1")
    count, height, width, channels = (*shape, 1)[:4]
    return count, channels, height, width


def _from_floats(array: Any, what: str) -> Any:
    """Floats in 0..1 as uint8."""
    check_finite(array, what)
    if array.size and (array.min() < 0 or array.max() > 1):
        raise DataError(f"{what} has floats from {array.min():g} to {array.max():g}; needed are 0 to 1, or uint8")
    return np.rint(array * 255).astype(np.uint8)
