"""The arrays in the original files of MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, verified by digests of the images
and labels themselves.

Shapes: N images of C channels and H x W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bllpipe.data.original_files import (
    IDX_PARTS,
    IDX_SHA256,
    CifarFiles,
    IdxFiles,
    damaged,
    find_cifar,
    find_idx,
    read_bounded,
)
from bllpipe.data.plain_pickle import load_plain
from bllpipe.errors import DataError

CIFAR_SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
IDX_MAGIC = {1: b"\0\0\x08\x01", 3: b"\0\0\x08\x03"}  # bytes, and the number of dimensions
# SHA-256 over the sorted SHA-256 of every record (label, then pixels): the order of a copy does not matter.
CIFAR_SHA256 = {
    "cifar10": {
        "train": "55a61f79a40ece2ceda9fb5f9f7078f6ea2fc4952489cef56682bcf92cfcc260",
        "test": "325704b01eb92e1e2a6215ae6a916bb7db7de054af0c496be1c7be2e0fcfbf5f",
    },
    "cifar100": {
        "train": "6d2a03c47c105e4c34d3a2ff16c2803e8df0e5d6fa0c631e46663a327aeac573",
        "test": "381b7d98ce1e9b98232a8df0db0a22992654c39ff2433270656ab8ace5a45e65",
    },
}
Splits = dict[str, tuple[Any, Any]]  # uint8 [N, C, H, W] and int64 [N] of train and test


def read_original(name: str, path: str) -> Splits | None:
    """Images and labels from the files under ``path``; None if there are none. DataError for files whose content is not
    that of ``name``."""
    if name not in IDX_SHA256:
        files = find_cifar(name, path)
        return None if files is None else verified_cifar(name, files)
    refused: DataError | None = None
    for each in find_idx(path):
        try:
            contents = {part: read_bounded(each[part]) for part in IDX_PARTS}
            if is_published(name, contents, each):
                return idx_arrays(contents, each)
        except DataError as error:  # another folder may have it
            refused = refused or error
    if refused is not None:
        raise refused
    return None


def is_published(name: str, contents: Mapping[str, bytes], files: IdxFiles) -> bool:
    """Whether the content of the four files is that of ``name``; DataError if it is that of no known set."""
    sha256 = tuple(hashlib.sha256(contents[part]).hexdigest() for part in IDX_PARTS)
    if sha256 in IDX_SHA256.values():
        return sha256 == IDX_SHA256[name]
    wrong = next(part for part, *pair in zip(IDX_PARTS, sha256, IDX_SHA256[name], strict=True) if pair[0] != pair[1])
    raise damaged(files[wrong], f"the SHA-256 of what is inside is not that of {name}")


def idx_arrays(contents: Mapping[str, bytes], files: IdxFiles) -> Splits:
    """The arrays of both splits."""
    splits: Splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = (f"{prefix}-images", f"{prefix}-labels")
        images_NHW = read_idx(contents[images], 3, files[images])
        labels_N = read_idx(contents[labels], 1, files[labels])
        if len(images_NHW) != len(labels_N):
            raise damaged(files[labels], f"it has {len(labels_N)} labels for {len(images_NHW)} images")
        splits[split] = images_NHW[:, None], labels_N.astype(np.int64)
    return splits


def read_idx(content: bytes, dimensions: int, path: Path) -> Any:
    """uint8 array of an IDX file (http://yann.lecun.com/exdb/mnist)."""
    header = 4 + 4 * dimensions
    if content[:4] != IDX_MAGIC[dimensions] or len(content) < header:
        raise damaged(path, f"it does not begin as an IDX file of bytes with {dimensions} dimensions")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, offset=4).tolist())
    if int(np.prod(shape, dtype=object)) != len(content) - header:
        raise damaged(path, f"it has {len(content) - header:,} bytes for the shape {list(shape)}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def verified_cifar(name: str, files: CifarFiles) -> Splits:
    """The arrays of both splits; DataError unless they are the published ones."""
    splits = cifar_arrays(files)
    for split, (images_NCHW, labels_N) in splits.items():
        if records_sha256(images_NCHW, labels_N) != CIFAR_SHA256[name][split]:
            raise damaged(files.place, f"its {split} images or labels are not those of {name}")
    return splits


def cifar_arrays(files: CifarFiles) -> Splits:
    """The arrays of both splits in either form."""
    contents, form, splits = files.contents(), files.form, Splits()
    for split, names in (("train", form.train), ("test", form.test)):
        parts = [_batch(contents[name], files, name) for name in names]
        images, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
        splits[split] = images.reshape(-1, *CIFAR_SHAPE), labels.astype(np.int64)
    return splits


def _batch(content: bytes, files: CifarFiles, name: str) -> tuple[Any, Any]:
    """uint8 [N, PIXELS] and the labels [N] of one file."""
    path, form = files.place / name, files.form
    if isinstance(form.label, int):
        size = form.label_bytes + PIXELS
        if not content or len(content) % size:
            raise damaged(path, f"it has {len(content):,} bytes, which are no records of {size:,}")
        records = np.frombuffer(content, np.uint8).reshape(-1, size)
        return records[:, form.label_bytes :], records[:, form.label]
    found = load_plain(content, str(path))
    images, labels = (found.get(key.encode(), found.get(key)) for key in ("data", form.label))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (PIXELS,):
        raise damaged(path, f"expected an array data of bytes [N, {PIXELS}]")
    if not isinstance(labels, list) or len(labels) != len(images) or not all(_is_class(label) for label in labels):
        raise damaged(path, f"expected a list {form.label} of {len(images)} whole numbers")
    return images, np.array(labels, dtype=np.uint8)


def _is_class(label: Any) -> bool:
    return isinstance(label, int) and 0 <= label < 256


def records_sha256(images_NCHW: Any, labels_N: Any) -> str:
    """The digest of a split, whatever the order of its images."""
    records: Any = np.concatenate([labels_N.astype(np.uint8)[:, None], images_NCHW.reshape(len(labels_N), -1)], axis=1)
    content, size = memoryview(records).cast("B"), records.shape[1]  # rows of an array would cost more than their hash
    each = sorted(hashlib.sha256(content[start : start + size]).digest() for start in range(0, len(content), size))
    return hashlib.sha256(b"".join(each)).hexdigest()
