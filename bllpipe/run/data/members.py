"""The arrays of a NumPy archive, one at a time, and none before its size is known. A zip file can promise whatever it
likes, and a few kilobytes of it can unfold to gigabytes. Nothing in it is ever unpickled.
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

from numpy.lib import format as npy

from bllpipe.errors import DataError

HEADER_BYTES = 1 << 14  # NumPy's own have some hundreds
DIRECTORY_BYTES = 1 << 20  # the list of contents of an archive has some hundreds too
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unfold without a limit
MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True)
class Member:
    """Shape and type of one array, as its header and the archive agree on them."""

    name: str
    shape: tuple[int, ...]
    dtype: Any

    @property
    def bytes(self) -> int:
        return prod(self.shape) * int(self.dtype.itemsize)


class Members:
    """The arrays in the archive at ``path``; DataError says what is wrong with it."""

    def __init__(self, path: str) -> None:
        self.path = path
        file: _Sparing | None = None
        try:
            file = _Sparing(path)
            self._zip = zipfile.ZipFile(file)
        except Exception as error:  # a hostile file can provoke nearly any of them
            if file is not None:
                file.close()
            raise DataError(f"{path} is no NumPy archive: {error!s:.200}; write one with numpy.savez") from error
        weakref.finalize(self, file.close)  # ZipFile closes only what it has opened itself
        self.names = [name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")]

    def member(self, name: str) -> Member:
        """Reads the header alone. Raises DataError when it does not fit what is stored, or holds Python objects."""
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
                f"{self.path}: {name} is damaged: its header tells of {list(shape)} {dtype} ({found.bytes:,} bytes), "
                f"but {info.file_size - start.tell():,} bytes are stored"
            )
        return found

    def array(self, name: str) -> Any:
        """The whole array, if it has the size that ``member`` says."""
        self.member(name)
        try:
            with self._zip.open(f"{name}.npy") as stream:
                return npy.read_array(stream, allow_pickle=False)
        except Exception as error:
            raise DataError(f"{self.path}: {name} cannot be read: {error!s:.200}") from error


class _Sparing(FileIO):
    """A file of which nobody takes much at once: not even who believes that its list of contents is that long."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > DIRECTORY_BYTES:
            raise ValueError(f"{wanted:,} bytes at once are too many")
        return super().read(wanted)


def free_bytes() -> int | None:
    """Memory that can still be had; None where the system does not tell."""
    if not MEMORY.exists():
        return None
    lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines() if ":" in line)
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None
