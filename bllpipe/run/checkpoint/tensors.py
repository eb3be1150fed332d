"""Reading safetensors files of which nothing is believed: the header is small, and no tensor is read before somebody
has seen its shape."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from bllpipe.errors import CheckpointError
from bllpipe.run.checkpoint.ordinary import ordinary_size

MAX_HEADER_BYTES = 4 << 20  # about 40,000 tensors
_LENGTH = struct.Struct("<Q")
BITS = {"64": 64, "32": 32, "16": 16}  # by the end of the name; all others have 8


@dataclass(frozen=True)
class TensorEntry:
    """What a file says of one tensor; ``dtype`` is the format's word for it, such as F32."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * BITS.get(self.dtype[-2:], 8) // 8


def mapped_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, as views of the file: who copies one reads it. The file may be
    removed, but must not be cut short while they are used.

    Raises CheckpointError when the file is not safetensors, or has a header of more than 4 MiB.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in _names(file, prefix)}


def tensor_entries(path: Path) -> dict[str, TensorEntry]:
    """dtype and shape of every tensor, from the header alone; CheckpointError as above."""
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in _names(file)}
        return {name: TensorEntry(found.get_dtype(), tuple(found.get_shape())) for name, found in slices.items()}


def file_metadata(path: Path) -> Mapping[str, str]:
    """The free text in the header; CheckpointError as above."""
    with _opened(path) as file:
        return file.metadata() or {}


def check_header(path: Path) -> None:
    """Raises CheckpointError when the file cannot be a safetensors file that is read here."""
    size = ordinary_size(path)
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH.size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else size
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} is not a safetensors file that can be read: its header would have {length:,} bytes; at most "
            f"{MAX_HEADER_BYTES:,} are read"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except Exception as error:  # a hostile header can provoke nearly any of them
        raise CheckpointError(f"{path} is not a safetensors file that can be read: {error!s:.300}") from error


def _names(file: Any, prefix: str = "") -> list[str]:
    return [name for name in list(file.keys()) if name.startswith(prefix)]
