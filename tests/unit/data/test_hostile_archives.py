"""Archives that promise other than they hold, unfold to more than there is, or wait to be unpickled."""

from __future__ import annotations

import os
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bllpipe.data import npz as archive
from bllpipe.data.npz import DIRECTORY_BYTES, HEADER_BYTES, Members, free_bytes, open_archive
from bllpipe.data.registry import read_arrays, read_labels
from bllpipe.errors import DataError
from tests.support.memory import little_memory

GIGABYTE = 10**9


def npy(array: Any, **header: Any) -> bytes:
    """An array as NumPy stores it, with ``header`` in place of what would be true."""
    file = BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, {**described, **header})
    return file.getvalue() + bytes(array.tobytes())


def good() -> dict[str, bytes]:
    """Two classes of four training and two test images."""
    return {
        name: npy(array)
        for name, array in {
            "train_x": np.zeros((4, 2, 2), np.uint8),
            "train_y": np.array([0, 1, 0, 1]),
            "test_x": np.zeros((2, 2, 2), np.uint8),
            "test_y": np.array([0, 1]),
        }.items()
    }


def packed(folder: Path, compression: int = zipfile.ZIP_STORED, **changes: bytes) -> str:
    path = folder / "set.npz"
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in {**good(), **changes}.items():
            file.writestr(f"{name}.npy", content)
    return str(path)


def test_the_good_one_is_good(tmp_path: Path) -> None:
    assert read_arrays(packed(tmp_path)).train_NCHW.shape == (4, 1, 2, 2)
    assert read_arrays(packed(tmp_path, zipfile.ZIP_DEFLATED)).num_classes == 2


@pytest.mark.parametrize("name", ["train_x", "train_y"])
@pytest.mark.parametrize("shape", [(4, 2, 10**12), (10**30, 1, 1), (3, 2, 2), (-4, -2, 2), (4, -2, 2), (5,), (10**12,)])
def test_a_header_that_tells_of_other_than_is_stored(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    path = packed(tmp_path, zipfile.ZIP_STORED, **{name: npy(np.zeros((4, 2, 2), np.uint8), shape=shape)})
    with pytest.raises(
        DataError, match=rf"{name} is damaged: its header describes \[.*\] uint8 \(.* bytes\), but 16 by"
    ):
        open_archive(path)


def test_an_archive_that_unfolds_to_more_than_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "free_bytes", lambda: 3 * GIGABYTE)
    start = npy(np.zeros(0, np.uint8), shape=(4, 1000, 10**6))
    path = packed(tmp_path, train_x=start)
    content = bytearray(Path(path).read_bytes())
    at = content.rindex(b"train_x.npy") - 46 + 24
    content[at : at + 4] = struct.pack("<I", len(start) + 4 * GIGABYTE)
    Path(path).write_bytes(content)
    with pytest.raises(
        DataError, match=r"unfolds to 4,000,000,\d+ bytes, but only 3,000,000,000 of memory are free; expected"
    ):
        open_archive(path)


def test_where_nobody_knows_what_is_free_the_sizes_are_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MEMORY", tmp_path / "none")
    assert free_bytes() is None
    assert open_archive(packed(tmp_path)).spec.num_train == 4
    (tmp_path / "none").write_text("MemTotal: 4 kB\nMemAvailable:       2 kB\n")
    assert free_bytes() == 2048
    (tmp_path / "none").write_text("MemTotal: 4 kB\n")
    assert free_bytes() is None


def test_a_bomb_behind_a_small_promise_is_not_unfolded(tmp_path: Path) -> None:
    """200 MB of zeros in 200 kB; the header speaks of 16 bytes."""
    bomb = npy(np.zeros((4, 2, 2), np.uint8)) + bytes(200_000_000)
    path = packed(tmp_path, zipfile.ZIP_DEFLATED, train_x=bomb)
    del bomb
    with (
        little_memory(),
        pytest.raises(
            DataError, match=r"train_x is damaged: its header describes \[4, 2, 2\] uint8 \(16 bytes\), but 200"
        ),
    ):
        open_archive(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_not_unfolded(tmp_path: Path, compression: int) -> None:
    with pytest.raises(DataError, match=r"cannot be read: it is packed in a way that NumPy does not use \(1\d\)"):
        open_archive(packed(tmp_path, compression))


def test_a_header_without_an_end_is_not_read(tmp_path: Path) -> None:
    huge = b"\x93NUMPY\x02\0" + struct.pack("<I", 2**31) + b" " * (2 * HEADER_BYTES)
    with pytest.raises(DataError, match="train_x cannot be read: EOF: reading array header, expected 2147483648 bytes"):
        open_archive(packed(tmp_path, train_x=huge))


def test_python_objects_are_never_loaded(tmp_path: Path) -> None:
    path = packed(tmp_path, train_y=npy(np.zeros(4, np.int64), descr="|O"))
    with pytest.raises(DataError, match="train_y holds Python objects, which are never loaded; save plain numbers"):
        read_labels(path)


@pytest.mark.parametrize(
    "header", ["{'descr': ", "{[]: 1}", "(" * 5000, "1", "{'descr': '|u1', 'shape': (1e400,)}", "\0"]
)
def test_headers_that_are_none(tmp_path: Path, header: str) -> None:
    content = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode()
    with pytest.raises(DataError, match="train_x cannot be read: "):
        open_archive(packed(tmp_path, train_x=content))


def test_a_list_of_contents_without_an_end_is_not_read(tmp_path: Path) -> None:
    path = Path(packed(tmp_path))
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, 2 * 10**9, 0, 0)
    path.write_bytes(b"")
    os.truncate(path, 2 * 10**9)
    with path.open("ab") as file:
        file.write(end)
    with (
        little_memory(),
        pytest.raises(DataError, match=r"no NumPy archive: 2,000,000,000 bytes at once are too many; write one with"),
    ):
        open_archive(str(path))
    assert DIRECTORY_BYTES < 2 << 20


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "set.npz")
    with pytest.raises(DataError, match="set.npz is a pipe or a device; expected a NumPy archive with train_x, train"):
        open_archive(str(tmp_path / "set.npz"))


def test_an_archive_that_the_disk_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path)

    def failing(file: Path, *arguments: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(DataError, match="set.npz cannot be read: Input/output error; expected a NumPy archive"):
        open_archive(path)


def test_a_flipped_bit_far_behind_the_header(tmp_path: Path) -> None:
    large = npy(np.zeros((4, 100, 100), np.uint8))
    path = packed(tmp_path, train_x=large)
    content = bytearray(Path(path).read_bytes())
    content[content.index(large) + len(large) - 1] ^= 1
    Path(path).write_bytes(content)
    found = Members(path)
    assert found.member("train_x").shape == (4, 100, 100)
    with pytest.raises(DataError, match="train_x cannot be read: Bad CRC-32"):
        found.array("train_x")
