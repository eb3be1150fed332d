"""Small data sets in the formats in which MNIST and CIFAR were published."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
PREFIXES = {"train": "train", "test": "t10k"}


def idx(array: Pixels) -> bytes:
    """An IDX file of bytes."""
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def idx_files(splits: Mapping[str, tuple[Pixels, Pixels]]) -> dict[str, bytes]:
    """The four files of images [N, H, W] and labels [N]."""
    return {
        f"{PREFIXES[split]}-{kind}-idx{array.ndim}-ubyte": idx(array)
        for split, pair in splits.items()
        for kind, array in zip(("images", "labels"), pair, strict=True)
    }


def few(seed: int, count: int, *shape: int, classes: int = 10) -> tuple[Pixels, Pixels]:
    """Random images [N, ...] and labels [N]."""
    draws = np.random.default_rng(seed)
    return draws.integers(0, 256, (count, *shape), np.uint8), draws.integers(0, classes, count, np.uint8)


def binary_batch(images_NP: Pixels, *labels_N: Pixels) -> bytes:
    """CIFAR's binary form: the labels of an image, then its pixels."""
    return bytes(np.concatenate([*(each[:, None] for each in labels_N), images_NP], axis=1).tobytes())


def python_batch(images_NP: Pixels, **labels: Sequence[int]) -> bytes:
    """CIFAR's python form, in the opcodes that Python 2.7 and NumPy 1 wrote with protocol 2."""
    entries = b"".join(_string(key.encode()) + _list(values) for key, values in labels.items())
    return b"\x80\x02}q\x01(" + entries + _string(b"data") + python2_array(images_NP) + b"u."


def python2_array(array: Any) -> bytes:
    shape = b"".join(b"J" + struct.pack("<i", side) for side in array.shape)
    return bytes(
        b"cnumpy.core.multiarray\n_reconstruct\nq\x0ccnumpy\nndarray\nq\x0dK\x00\x85U\x01b\x87Rq\x0e(K\x01("
        + shape
        + b"tq\x0fcnumpy\ndtype\nq\x10U\x02u1K\x00K\x01\x87Rq\x11"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", array.size)
        + array.tobytes()
        + b"tb"
    )


def _string(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text + b"q\x03"


def _list(values: Sequence[int]) -> bytes:
    return b"]q\x05(" + b"".join(b"K" + bytes([value]) for value in values) + b"e"


def write_tar(path: Path, mode: Any, files: Mapping[str, bytes]) -> Path:
    """An archive with these files in a folder."""
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
