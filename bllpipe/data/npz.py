"""Data sets in a NumPy archive with the arrays train_x, train_y, test_x and test_y, and checks of arrays of any source.

The file is not trusted: a zip file of a few kilobytes can expand to gigabytes, so the size of every array is checked
before it is read, and nothing is ever unpickled.
"""

from __future__ import annotations

import os
import weakref
import zipfile
from dataclasses import dataclass
from io import BytesIO, FileIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from bllpipe.data.catalog import MAX_CLASSES, DataSpec, check_labels
from bllpipe.errors import DataError

NAMES = ("train_x", "train_y", "test_x", "test_y")
HEADER_BYTES = 1 << 14  # those of NumPy have some hundreds
DIRECTORY_BYTES = 1 << 20  # the directory of an archive has some hundreds, too
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile decompresses the other formats without a limit
MEMORY = Path("/proc/meminfo")


def check_label_form(kind: str, shape: tuple[int, ...], form: str, what: str) -> None:
    """Raises DataError unless the labels are whole numbers [N]; ``kind`` is NumPy's letter for their dtype, ``form``
    their dtype and shape in messages."""
    if kind in "iu" and len(shape) == 1:
        return
    if kind in "USO":
        hint = "number the classes, for example with numpy.unique(labels, return_inverse=True)[1]"
    elif len(shape) == 2 and shape[1] == 1:
        hint = "use labels.squeeze(1)"
    elif len(shape) == 2:
        hint = "use labels.argmax(1) if they are one-hot"
    else:
        hint = "convert them to int64, one for each image"
    raise DataError(f"{what}: expected whole numbers [N], the classes from 0, got {form}; {hint}")


def label_array(values: Any, what: str) -> Any:
    """int64 [N] of whole numbers of any width, sign and byte order."""
    array = plain_array(values, what)
    check_label_form(array.dtype.kind, array.shape, array_form(array), what)
    if array.size and array.max() >= MAX_CLASSES:
        raise DataError(
            f"{what} has the label {array.max()}; expected classes numbered from 0, at most {MAX_CLASSES:,}"
        )
    return array.astype(np.int64)


def plain_array(values: Any, what: str) -> Any:
    """An array of numbers in native byte order, with strides that torch supports; of an array, a list, or an object
    with ``__array__``. DataError for Python objects, masked values, and lists whose items have several forms."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise DataError(f"{what}: expected values everywhere, got a masked array; use its .filled(value)")
    try:
        array = np.asarray(values)
    except Exception as error:  # a user-defined object may raise anything
        raise DataError(f"{what}: expected an array, got {_uneven(values) or error}") from error
    if array.dtype.hasobject and array.size:
        first = array.flat[0]
        raise DataError(
            f"{what}: expected numbers, got Python objects, the first {type(first).__name__} {first!r:.40}; use an "
            f"array of numbers; strings are numbered with numpy.unique(labels, return_inverse=True)[1]"
        )
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(array) if any(stride < 0 for stride in array.strides) else array


def _uneven(values: Any) -> str | None:
    """The first item of a list whose shape differs from that of item 0."""
    if not isinstance(values, (list, tuple)) or not values:
        return None
    shapes = [np.shape(value) if not isinstance(value, (list, tuple)) else _outline(value) for value in values]
    other = next((number for number, shape in enumerate(shapes) if shape != shapes[0]), None)
    return None if other is None else f"item {other} of shape {list(shapes[other])}, the first one {list(shapes[0])}"


def _outline(values: Any) -> tuple[int, ...]:
    """The shape of nested lists, by their first items."""
    if not isinstance(values, (list, tuple)):
        return ()
    return (len(values), *(_outline(values[0]) if values else ()))


def check_finite(array: Any, what: str) -> None:
    """Raises DataError for images [N, ...] with NaN or Inf in them."""
    bad = ~np.isfinite(array)
    if bad.any():
        first = int(np.argwhere(bad)[0][0])
        raise DataError(f"{what} holds {int(bad.sum())} values that are NaN or Inf, the first in image {first}")


def array_form(array: Any) -> str:
    """``float64 [10, 3]``, or ``strings [10]``."""
    name = {"U": "strings", "S": "bytes"}.get(array.dtype.kind, str(array.dtype))
    return f"{name} {list(array.shape)}"


@dataclass(frozen=True)
class Archive:
    """An archive with checked labels and sizes; its images are read on request."""

    path: str
    members: Members
    train_N: Any
    test_N: Any
    spec: DataSpec

    def images(self, name: str) -> Any:
        """uint8 [N, H, W] or [N, H, W, C]; floats must be in 0..1 and are scaled."""
        array, what = self.members.array(name), f"{self.path}: {name}"
        if array.dtype.kind != "f":
            return array
        check_finite(array, what)
        if array.size and (array.min() < 0 or array.max() > 1):
            raise DataError(f"{what} has floats from {array.min():g} to {array.max():g}; expected 0 to 1, or uint8")
        return np.rint(array * 255).astype(np.uint8)

    def check_floats(self) -> None:
        """Raises DataError for NaN, Inf and floats beyond 0..1; integers are valid by their dtype."""
        for name in ("train_x", "test_x"):
            if self.members.member(name).dtype.kind == "f":
                self.images(name)


def open_archive(path: str) -> Archive:
    """Checks labels, shapes, types, and that memory can hold it all; DataError says which array is wrong and how."""
    members = _open(path)
    needed, free = sum(members.member(name).bytes for name in NAMES), free_bytes()
    if free is not None and needed > free:
        raise DataError(
            f"{path} unfolds to {needed:,} bytes, but only {free:,} of memory are free; expected an archive that fits, "
            f"or data.name=imagefolder, which reads a batch at a time"
        )
    train, test = (_image_shape(members, name) for name in ("train_x", "test_x"))
    train_N, test_N = _labels(members, "train_y"), _labels(members, "test_y")
    classes = check_labels(train_N, test_N, path)
    for split, shape, labels_N in (("train", train, train_N), ("test", test, test_N)):
        if shape[0] != len(labels_N):
            raise DataError(f"{path}: {split}_x has {shape[0]} images, but {split}_y {len(labels_N)} labels")
    if train[1:] != test[1:]:
        raise DataError(
            f"{path}: training images are {list(train[1:])}, test images {list(test[1:])} "
            f"(channels, height, width); expected one shape"
        )
    return Archive(path, members, train_N, test_N, DataSpec(train[0], test[0], train[1:], classes))


def _open(path: str) -> Members:
    if not Path(path).is_file():
        kind = "is a folder" if Path(path).is_dir() else "is a pipe or a device"
        found = kind if Path(path).exists() else "does not exist"
        raise DataError(f"{path} {found}; expected a NumPy archive with {', '.join(NAMES)}")
    try:
        with Path(path).open("rb") as file:
            is_single_array = file.read(6) == b"\x93NUMPY"
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; expected a NumPy archive") from error
    if is_single_array:
        raise DataError(f"{path} holds a single array; expected an archive with {', '.join(NAMES)}")
    members = Members(path)
    missing = [name for name in NAMES if name not in members.names]
    if missing:
        found = ", ".join(members.names[:9]) or "nothing"
        raise DataError(f"{path} lacks {', '.join(missing)}; it has {found:.300}")
    return members


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
            f"{members.path}: {name} is {list(shape)}; expected [N, H, W] or [N, H, W, C] with 1, 3 or 4 channels"
        )
    if dtype != np.uint8 and dtype.kind != "f":
        raise DataError(f"{members.path}: {name} is {dtype}; expected uint8, or floats from 0 to 1")
    count, height, width, channels = (*shape, 1)[:4]
    return count, channels, height, width


@dataclass(frozen=True)
class Member:
    """Shape and dtype of one array, on which its header and the archive agree."""

    name: str
    shape: tuple[int, ...]
    dtype: Any

    @property
    def bytes(self) -> int:
        return prod(self.shape) * int(self.dtype.itemsize)


class Members:
    """The arrays in the archive at ``path``; raises DataError for an invalid archive."""

    def __init__(self, path: str) -> None:
        self.path = path
        file: _BoundedFile | None = None
        try:
            file = _BoundedFile(path)
            self._zip = zipfile.ZipFile(file)
        except Exception as error:  # a hostile file can provoke nearly any of them
            if file is not None:
                file.close()
            raise DataError(f"{path} is no NumPy archive: {error!s:.200}; write one with numpy.savez") from error
        weakref.finalize(self, file.close)  # ZipFile closes only what it has opened itself
        self.names = [name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")]

    def member(self, name: str) -> Member:
        """Reads the header alone. Raises DataError if it contradicts the stored size, or for Python objects."""
        try:
            info = self._zip.getinfo(f"{name}.npy")
            if info.compress_type not in PACKED:
                raise ValueError(f"it is packed in a way that NumPy does not use ({info.compress_type})")
            with self._zip.open(info) as stream:
                start = BytesIO(stream.read(HEADER_BYTES))
            shape, _, dtype = HEADERS[npy.read_magic(start)](start)
        except Exception as error:
            raise DataError(f"{self.path}: {name} cannot be read: {error!s:.200}") from error
        found = Member(name, shape, dtype)
        if dtype.hasobject:
            raise DataError(f"{self.path}: {name} holds Python objects, which are never loaded; save plain numbers")
        if min(shape, default=0) < 0 or start.tell() + found.bytes != info.file_size:
            raise DataError(
                f"{self.path}: {name} is damaged: its header describes {list(shape)} {dtype} ({found.bytes:,} bytes), "
                f"but {info.file_size - start.tell():,} bytes are stored"
            )
        return found

    def array(self, name: str) -> Any:
        """The whole array, after the checks of ``member``."""
        self.member(name)
        try:
            with self._zip.open(f"{name}.npy") as stream:
                return npy.read_array(stream, allow_pickle=False)
        except Exception as error:
            raise DataError(f"{self.path}: {name} cannot be read: {error!s:.200}") from error


class _BoundedFile(FileIO):
    """A file with bounded reads, as zipfile reads a directory of any length that an archive claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > DIRECTORY_BYTES:
            raise ValueError(f"{wanted:,} bytes at once are too many")
        return super().read(wanted)


def free_bytes() -> int | None:
    """Free memory; None if the system does not report it."""
    if not MEMORY.exists():
        return None
    lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines() if ":" in line)
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None
