"""Finding a valid checkpoint, and reading from it.

safetensors files are not trusted: the header is bounded, and no tensor is read before its shape has been checked.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from bllpipe.checkpoint.format import MANIFEST, DirectoryName, Manifest, metadata_file, tensor_file
from bllpipe.errors import CheckpointError
from bllpipe.utils.files import ordinary_size, read_record

MAX_HEADER_BYTES = 4 << 20  # about 40,000 tensors
_LENGTH = struct.Struct("<Q")
BITS = {"64": 64, "32": 32, "16": 16}  # by the end of the dtype's name; all others have 8


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: the state of all ranks after ``step`` training steps."""

    path: Path
    step: int
    world_size: int

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Copies of the tensors of all ranks whose names start with ``prefix``, on the CPU.

        Raises CheckpointError if a file is not safetensors, or if two ranks have a tensor of the same name.
        """
        return {name: tensor.clone() for name, tensor in self.mapped(prefix).items()}

    def mapped(self, prefix: str = "") -> dict[str, Tensor]:
        """The same as views of the files, which are read when they are copied: for a part of the tensors, or for their
        shapes. Raises CheckpointError as ``tensors`` does."""
        views: dict[str, Tensor] = {}
        for rank in range(self.world_size):
            tensors = mapped_tensors(self.path / tensor_file(rank), prefix)
            if twice := views.keys() & tensors.keys():
                names = ", ".join(repr(name) for name in sorted(twice)[:5])
                raise CheckpointError(f"{self.path}: rank {rank} and a rank before it both hold {names:.300}")
            views |= tensors
        return views

    def verify(self, names: Container[str]) -> None:
        """Reads every byte of the parts that hold any tensor of these ``names``. Raises CheckpointError for a part that
        differs from what was written."""
        files = Manifest.read(self.path).files
        for file in map(tensor_file, range(self.world_size)):
            if any(name in names for name in tensor_entries(self.path / file)):
                files[file].verify(self.path / file)

    def names(self) -> list[str]:
        """The names of all tensors, in order of rank; no values are read."""
        return [name for rank in range(self.world_size) for name in tensor_entries(self.path / tensor_file(rank))]

    def metadata(self) -> list[dict[str, Any]]:
        """The metadata of each rank (rank-k.json), in the order of ranks."""
        return [read_metadata(self.path, rank) for rank in range(self.world_size)]

    def config(self) -> dict[str, Any]:
        """The config of the run that wrote it, as nested dicts; CheckpointError if the first rank has none."""
        config = read_metadata(self.path, 0).get("config")
        if not isinstance(config, dict):
            raise CheckpointError(
                f"{self.path} does not hold the config that it was written with; use another checkpoint"
            )
        return config


def find_checkpoint(directory: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest valid checkpoint in ``directory``; None if there is none at all.

    ``warn`` gets a message about each damaged one, and the one before it is used. If all of them are damaged this
    raises CheckpointError: a run must not start over silently.
    """
    misnamed = misnamed_checkpoints(directory)
    for path in misnamed:
        warn(
            f"skipped {path.name}: it holds a manifest, but its name is not that of a checkpoint, such as step-00000120"
        )
    candidates = newest_first(directory)
    for path in candidates:
        try:
            return _verified(path)
        except CheckpointError as error:
            warn(f"skipped the checkpoint {path.name}: {error}")
    if candidates or misnamed:
        raise CheckpointError(
            f"all {len(candidates) + len(misnamed)} checkpoints in {directory} are damaged; to start over, use another "
            f"--run-dir or move them away"
        )
    return None


def open_checkpoint(path: Path, sizes_only: bool = False) -> Checkpoint:
    """The checkpoint at ``path``: a step directory, or the newest one of a run or checkpoints directory. With
    ``sizes_only`` no byte of its parts is read: for ranks that restore from some of them, and ``verify`` these.

    Raises CheckpointError if it is damaged: a checkpoint that is named is never replaced by another one.
    """
    candidates = checkpoints_at(path)
    try:
        return _verified(candidates[0], sizes_only)
    except CheckpointError as error:
        if DirectoryName.parse(_resolved(path).name) is not None:
            raise
        raise CheckpointError(f"{error}; use an older checkpoint, or --resume auto") from error


def checkpoints_at(path: Path) -> list[Path]:
    """The checkpoints at ``path``, damaged or not: one step directory, or all of a run or checkpoints directory, the
    newest first. Raises CheckpointError if there is none."""
    path = _resolved(path)
    if DirectoryName.parse(path.name) is not None:
        return [path]
    candidates = newest_first(checkpoint_folder(path))
    if not candidates:
        raise CheckpointError(f"{path} holds no checkpoint; use a run directory or one of its checkpoints/step-N")
    return candidates


def checkpoint_folder(path: Path) -> Path:
    """The directory of a run's checkpoints: ``path`` or its subdirectory."""
    return path if checkpoints_in(path) else path / "checkpoints"


def newest_first(directory: Path) -> list[Path]:
    """Directories with the name of a checkpoint, damaged or not."""
    return [path for name, path in checkpoints_in(directory) if name.state != "partial"]


def checkpoints_in(directory: Path) -> list[tuple[DirectoryName, Path]]:
    """All directories with the name of a checkpoint, the newest first; a replaced one comes after its replacement."""
    named = [(DirectoryName.parse(path.name), path) for path in _entries(directory)]
    known = [(name, path) for name, path in named if name is not None]
    return sorted(known, key=lambda each: (each[0].step, each[0].state == "whole", each[1]), reverse=True)


def misnamed_checkpoints(directory: Path) -> list[Path]:
    """Directories, not links, that hold a manifest but have another name than a checkpoint: they were renamed."""
    others = [path for path in _entries(directory) if DirectoryName.parse(path.name) is None and not path.is_symlink()]
    return sorted(path for path in others if os.path.isfile(path / MANIFEST))


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read: {error.strerror}") from error


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise CheckpointError(f"{path} cannot be read: {error}; use a run directory or a checkpoint") from error


def _verified(path: Path, sizes_only: bool = False) -> Checkpoint:
    manifest = Manifest.read(path)
    manifest.verify(path, sizes_only)
    return Checkpoint(path, manifest.step, manifest.world_size)


@dataclass(frozen=True)
class TensorEntry:
    """dtype and shape of one tensor in a file; ``dtype`` is the name in the format, such as F32."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * BITS.get(self.dtype[-2:], 8) // 8


def mapped_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, as views of the file, which are read when they are copied. The
    file may be removed, but must not be truncated while they are used.

    Raises CheckpointError if the file is not safetensors, or has a header of more than 4 MiB.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in _names(file, prefix)}


def tensor_entries(path: Path) -> dict[str, TensorEntry]:
    """dtype and shape of every tensor, from the header alone; CheckpointError as above."""
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in _names(file)}
        return {name: TensorEntry(each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}


def file_metadata(path: Path) -> Mapping[str, str]:
    """The metadata in the header; CheckpointError as above."""
    with _opened(path) as file:
        return file.metadata() or {}


def check_header(path: Path) -> None:
    """Raises CheckpointError unless the file has a header of at most MAX_HEADER_BYTES."""
    size = ordinary_size(path)
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH.size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else size
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} is not a safetensors file that can be read: expected a header of at most {MAX_HEADER_BYTES:,} "
            f"bytes, got {length:,}"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    check_header(path)
    try:
        with _named_in_utf8(path) as name, safe_open(name, framework="pt") as file:
            yield file
    except Exception as error:  # a hostile header can provoke nearly any of them
        raise CheckpointError(f"{path} is not a safetensors file that can be read: {error!s:.300}") from error


@contextmanager
def _named_in_utf8(path: Path) -> Iterator[str]:
    """A name of the file that safetensors takes: that of its descriptor if ``path`` is not UTF-8."""
    try:
        name = str(path)
        name.encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield name


def _names(file: Any, prefix: str = "") -> list[str]:
    return [name for name in list(file.keys()) if name.startswith(prefix)]


def read_metadata(directory: Path, rank: int) -> dict[str, Any]:
    return read_record(directory / metadata_file(rank))[0]
