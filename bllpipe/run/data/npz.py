"""Data sets of one's own in a NumPy archive: train_x, train_y, test_x, test_y."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bllpipe.errors import DataError
from bllpipe.run.data.sets import Arrays, LabelSet, check_labels

NAMES = ("train_x", "train_y", "test_x", "test_y")


def read_arrays(path: str) -> Arrays:
    """Images uint8 [N, H, W, C] or [N, H, W] (or floats in 0..1) and whole-number labels [N]."""
    archive = _open(path)
    labels = _labels(archive, path)
    images = [_images(_array(archive, name, path), f"{path}: {name}") for name in ("train_x", "test_x")]
    for split, images_NCHW, labels_N in zip(("train", "test"), images, (labels.train_N, labels.test_N), strict=True):
        if len(images_NCHW) != len(labels_N):
            raise DataError(f"{path}: {split}_x has {len(images_NCHW)} images, but {split}_y {len(labels_N)} labels")
    if images[0].shape[1:] != images[1].shape[1:]:
        raise DataError(
            f"{path}: training images are {list(images[0].shape[1:])}, test images {list(images[1].shape[1:])} "
            f"(channels, height, width); needed is one shape"
        )
    return Arrays(images[0], labels.train_N, images[1], labels.test_N, labels.num_classes)


def read_labels(path: str) -> LabelSet:
    """The labels alone; the images stay on disk."""
    return _labels(_open(path), path)


def _open(path: str) -> Any:
    if not Path(path).is_file():
        raise DataError(f"{path} does not exist; needed is a NumPy archive with {', '.join(NAMES)}")
    try:
        archive = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no NumPy archive: {error}; write one with numpy.savez") from error
    if not hasattr(archive, "files"):
        raise DataError(f"{path} holds a single array; needed is an archive with {', '.join(NAMES)}")
    missing = [name for name in NAMES if name not in archive.files]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it has {', '.join(archive.files) or 'nothing'}")
    return archive


def _array(archive: Any, name: str, path: str) -> Any:
    try:
        return archive[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: {name} cannot be read: {error}") from error


def _labels(archive: Any, path: str) -> LabelSet:
    arrays = []
    for name in ("train_y", "test_y"):
        array = _array(archive, name, path)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DataError(f"{path}: {name} is {array.dtype}{list(array.shape)}; needed are whole numbers [N]")
        arrays.append(torch.from_numpy(array.astype(np.int64)))
    return LabelSet(arrays[0], arrays[1], check_labels(arrays[0], arrays[1], path))


def _images(array: Any, what: str) -> Tensor:
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3, 4)):
        raise DataError(f"{what} is {list(array.shape)}; needed is [N, H, W] or [N, H, W, C] with 1, 3 or 4 channels")
    if array.dtype.kind == "f":
        array = _from_floats(array, what)
    if array.dtype != np.uint8:
        raise DataError(f"{what} is {array.dtype}; needed is uint8, or floats from 0 to 1")
    images = torch.from_numpy(np.ascontiguousarray(array))
    return (images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)).contiguous()


def _from_floats(array: Any, what: str) -> Any:
    """Floats in 0..1 as uint8."""
    bad = ~np.isfinite(array)
    if bad.any():
        first = int(np.argwhere(bad)[0][0])
        raise DataError(f"{what} holds {int(bad.sum())} values that are NaN or Inf, the first in image {first}")
    if array.size and (array.min() < 0 or array.max() > 1):
        raise DataError(f"{what} has floats from {array.min():g} to {array.max():g}; needed are 0 to 1, or uint8")
    return np.rint(array * 255).astype(np.uint8)
