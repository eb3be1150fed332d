"""Finding a checkpoint that can be trusted, and reading from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bllpipe.errors import CheckpointError
from bllpipe.run.checkpoint.manifest import Manifest
from bllpipe.run.checkpoint.names import DirectoryName
from bllpipe.run.checkpoint.shard import read_facts, read_names, read_tensors


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: the state of all ranks after ``step`` training steps."""

    path: Path
    step: int
    world_size: int

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """The tensors of all ranks whose names start with ``prefix``, on the CPU; only those are read.

        Raises CheckpointError when a file is not safetensors, or when two ranks have a tensor of the same name.
        """
        found: dict[str, Tensor] = {}
        for rank in range(self.world_size):
            tensors = read_tensors(self.path, rank, prefix)
            if twice := found.keys() & tensors.keys():
                names = ", ".join(sorted(twice))
                raise CheckpointError(f"{self.path}: rank {rank} and a rank before it both hold {names}")
            found |= tensors
        return found

    def names(self) -> list[str]:
        """The names of all tensors, in order of rank; no values are read."""
        return [name for rank in range(self.world_size) for name in read_names(self.path, rank)]

    def facts(self) -> list[dict[str, Any]]:
        """What each rank wrote beside its tensors, in the order of ranks."""
        return [read_facts(self.path, rank) for rank in range(self.world_size)]


def find_checkpoint(directory: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest valid checkpoint in ``directory``; None when there is none at all.

    A damaged one is told to ``warn``, and the one before it is taken. When all of them are damaged this raises
    CheckpointError: a run must not start over silently.
    """
    candidates = _newest_first(directory)
    for path in candidates:
        try:
            return _verified(path)
        except CheckpointError as error:
            warn(f"skipped the checkpoint {path.name}: {error}")
    if candidates:
        raise CheckpointError(
            f"no checkpoint in {directory} is whole, and there are {len(candidates)}; "
            f"to start over, name another --run-dir or move them away"
        )
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at ``path``: a step directory, or the newest one of a run or checkpoints directory.

    Raises CheckpointError when it is damaged: who names a checkpoint gets that one or none.
    """
    path = path.resolve()
    if DirectoryName.parse(path.name) is not None:
        return _verified(path)
    candidates = _newest_first(path) or _newest_first(path / "checkpoints")
    if not candidates:
        raise CheckpointError(f"{path} holds no checkpoint; name a run directory or one of its checkpoints/step-N")
    try:
        return _verified(candidates[0])
    except CheckpointError as error:
        raise CheckpointError(f"{error}; name an older checkpoint, or let --resume auto choose one") from error


def _newest_first(directory: Path) -> list[Path]:
    """What claims to be a checkpoint, damaged or not; one that was moved aside comes after its successor."""
    try:
        named = [(DirectoryName.parse(path.name), path) for path in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be read: {error.strerror}") from error
    claims = [(name.step, name.state == "whole", path) for name, path in named if name and name.state != "partial"]
    return [path for _, _, path in sorted(claims, reverse=True)]


def _verified(path: Path) -> Checkpoint:
    manifest = Manifest.read(path)
    manifest.verify(path)
    return Checkpoint(path, manifest.step, manifest.world_size)
