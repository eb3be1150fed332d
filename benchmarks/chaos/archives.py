"""Hostile NumPy archives: they promise other than they hold, unfold to more than there is, or wait to be unpickled."""

from __future__ import annotations

import random
import struct
import zipfile
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos.cases import Families, MakeCase
from benchmarks.chaos.hostile import (
    Harm,
    disguised,
    file_case,
    mutated,
    no_file,
    noise,
    of_kinds,
    plain_pickle,
    sparse,
    unharmed,
)
from benchmarks.chaos.tensors import pickle_by_torch, pickle_in_a_zip
from bllpipe.data.registry import read_arrays

ARRAYS = {
    "train_x": np.zeros((4, 2, 2), np.uint8),
    "train_y": np.array([0, 1, 0, 1]),
    "test_x": np.zeros((2, 2, 2), np.uint8),
    "test_y": np.array([0, 1]),
}
SHAPES: list[Any] = [
    (10**12,),
    (4, 2, 10**12),
    (10**30, 1, 1),
    (-4, -2, 2),
    (3, 2, 2),
    (),
    (4, 2, 2, 5),
    (0, 2, 2),
    (4.0,),
]
DTYPES: list[Any] = [
    "|O",
    "<i8",
    ">f4",
    "|S4",
    "<U9",
    "<c8",
    "|V8",
    "|b1",
    "<m8[s]",
    "x",
    3,
    [("a", "|O")],
    [("a", "<f4")],
    "|u1",
]
HEADER_TEXTS = [b"{", b"{[]: 1}", b"(" * 5000, b"1", b"\0", b"{'shape': (1e400,)}", b"9" * 5000, b"__import__('os')"]
# Of an entry in the list of contents: flags, packing, CRC, sizes, length of what comes after, where the array begins.
PLACES = [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (42, 4)]
MEBIBYTE = 1 << 20


def archive_families() -> Families:
    return {"archives": _archives()}


def _archives() -> MakeCase:
    case = partial(file_case, "set.npz", read=unharmed(lambda path: read_arrays(str(path))))
    return of_kinds(
        {
            "a header": case(write=_odd_header),
            "a list of contents that lies": case(write=_lying_directory, may_pass=True),
            "a bomb": case(write=_bomb),
            "terabytes": case(write=_terabytes),
            "arrays": case(write=_odd_arrays),
            "objects": case(write=_objects),
            "members": case(write=_odd_members),
            "no file": case(write=no_file),
            "a file without end": case(write=sparse(b"PK\3\4")),
            "random bytes": case(write=noise(b"", b"PK\3\4", b"PK\5\6", b"\x93NUMPY\1\0")),
            "a pickle": case(write=disguised(plain_pickle, pickle_by_torch, pickle_in_a_zip)),
            "a good one, changed": case(write=mutated(packed), may_pass=True),
        }
    )


def npy(array: Any, **header: Any) -> bytes:
    """An array as NumPy stores it, with ``header`` in place of what would be true."""
    file = BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, {**described, **header})
    return file.getvalue() + bytes(array.tobytes())


def packed(draws: random.Random, **changes: bytes | None) -> bytes:
    """A good archive with other contents for some members; None leaves one out."""
    file, contents = BytesIO(), {name: npy(array) for name, array in ARRAYS.items()}
    with zipfile.ZipFile(file, "w", draws.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name, content in {**contents, **changes}.items():
            if content is not None:
                archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def a_name(draws: random.Random) -> str:
    return draws.choice(sorted(ARRAYS))


def _odd_header(draws: random.Random, path: Path) -> str:
    name = a_name(draws)
    header: dict[str, Any] = {"shape": draws.choice(SHAPES)}
    if draws.random() < 0.5:
        header["descr"] = draws.choice(DTYPES)
    content = _header_of_text(draws) if draws.random() < 0.3 else npy(ARRAYS[name], **header)
    path.write_bytes(packed(draws, **{name: content}))
    return f"{name}: {content[:120]!r}"


def _header_of_text(draws: random.Random) -> bytes:
    text, version = draws.choice(HEADER_TEXTS), draws.choice([1, 2, 3, 9])
    length = struct.pack("<H", len(text)) if version == 1 else struct.pack("<I", draws.choice([len(text), 2**31]))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text


def _lying_directory(draws: random.Random, path: Path) -> str:
    content = bytearray(packed(draws))
    at, size = draws.choice(PLACES)
    number = draws.choice([1, 9, 12, 14, 2 ** (8 * size) - 1, 2 ** (8 * size - 1)])
    start = content.rindex(f"{a_name(draws)}.npy".encode()) - 46 + at
    content[start : start + size] = number.to_bytes(size, "little")
    path.write_bytes(content)
    return f"{number} at {at} of an entry"


def _bomb(draws: random.Random, path: Path) -> str:
    """Hundreds of megabytes in a few kilobytes, behind a header that speaks of some bytes."""
    name, size = a_name(draws), draws.randrange(320, 400)
    path.write_bytes(packed(draws, **{name: None}))
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"{name}.npy", "w") as member,
    ):
        member.write(npy(ARRAYS[name]))
        for _ in range(size):
            member.write(bytes(MEBIBYTE))
    return f"{size} MiB in {path.stat().st_size:,} bytes"


def _terabytes(draws: random.Random, path: Path) -> str:
    """The header and the list of contents agree on more than any memory holds."""
    number = draws.randrange(2 << 30, 4 << 30)
    start = npy(np.zeros(0, np.uint8), shape=(4, 1024, number // 4096))
    content = bytearray(packed(draws, train_x=start))
    size = struct.pack("<I", len(start) + number // 4096 * 4096)
    at = content.rindex(b"train_x.npy") - 46 + 24
    content[at : at + 4] = size
    path.write_bytes(content)
    return f"{number:,} bytes promised"


def _odd_arrays(draws: random.Random, path: Path) -> str:
    name = draws.choice(["train_x", "test_x"])
    count = len(ARRAYS[name])
    images: dict[str, Any] = {
        "NaN": np.full((count, 2, 2), np.nan, np.float32),
        "Inf": np.full((count, 2, 2), -np.inf),
        "beyond 1": np.full((count, 2, 2), 7.0),
        "flat": np.zeros((count, 4), np.uint8),
        "another size": np.zeros((count, 3, 2), np.uint8),
        "no pixels": np.zeros((count, 0, 2), np.uint8),
        "int64": np.zeros((count, 2, 2), np.int64),
        "truth values": np.zeros((count, 2, 2), bool),
        "one more": np.zeros((count + 1, 2, 2), np.uint8),
        "none": np.zeros((0, 2, 2), np.uint8),
    }
    labels: dict[str, Any] = {
        "a large label": np.array([0, 10**9] * 2),
        "a huge label": np.array([0, 2**63 + 5] * 2, np.uint64),
        "a negative label": np.array([-1, 1, 0, 1]),
        "floats": np.zeros(4),
        "one class": np.zeros(4, int),
        "words": np.array(["a"] * 4),
    }
    kind = draws.choice(sorted([*images, *labels]))
    place, array = (name, images[kind]) if kind in images else ("train_y", labels[kind])
    path.write_bytes(packed(draws, **{place: npy(array)}))
    return f"{kind} in {place}"


def _objects(draws: random.Random, path: Path) -> str:
    """Arrays of Python objects, which NumPy stores as pickles."""
    name = a_name(draws)
    harm = np.array([Harm(path.parent / "harm")] * len(ARRAYS[name]), dtype=object)
    np.savez(path, **{**ARRAYS, name: harm})  # type: ignore[arg-type]  # NumPy's types take a dict for allow_pickle
    return f"{name} is pickled"


def _odd_members(draws: random.Random, path: Path) -> str:
    name, kind = (
        a_name(draws),
        draws.choice(["missing", "in a folder", "twice", "no array", "alone", "packed otherwise"]),
    )
    changes: dict[str, dict[str, bytes | None]] = {
        "missing": {name: None},
        "in a folder": {name: None, f"../{name}": npy(ARRAYS[name])},
        "no array": {name: draws.randbytes(draws.choice([0, 5, 50, 50_000]))},
    }
    path.write_bytes(npy(ARRAYS[name]) if kind == "alone" else packed(draws, **changes.get(kind, {})))
    if kind == "packed otherwise":
        path.write_bytes(packed(draws, **{name: None}))
        with zipfile.ZipFile(path, "a", draws.choice([zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])) as archive:
            archive.writestr(f"{name}.npy", npy(ARRAYS[name]))
    if kind == "twice":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{name}.npy", npy(ARRAYS[name][:1]))
    return f"{name} is {kind}"
