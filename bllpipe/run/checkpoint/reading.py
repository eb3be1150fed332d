"""Finding a checkpoint that can be trusted, and reading from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bllpipe.errors import CheckpointError
from bllpipe.run.checkpoint import manifest


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: the state of all ranks after ``step`` training steps."""

    path: Path
    step: int
    world_size: int

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """The tensors of all ranks whose names start with ``prefix``; only those are read."""
        found: dict[str, Tensor] = {}
        for rank in range(self.world_size):
            for name, tensor in _read_tensors(self.path / f"rank-{rank}.safetensors", prefix).items():
                if name in found:
                    raise CheckpointError(f"{self.path}: the tensor {name} is in two ranks")
                found[name] = tensor
        return found

    def facts(self) -> list[dict[str, Any]]:
        """What each rank wrote beside its tensors, in order of rank."""
        return [json.loads((self.path / f"rank-{rank}.json").read_bytes()) for rank in range(self.world_size)]


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at ``path``: a step directory, or the newest valid one of a run directory."""
    if manifest.step_of(path) is not None:
        return _verified(path)
    for directory in (path, path / "checkpoints"):
        found = find_checkpoint(directory, warn=lambda text: None)
        if found is not None:
            return found
    raise CheckpointError(f"{path} holds no checkpoint; needed is a run directory or a step-N directory")


def find_checkpoint(directory: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest valid checkpoint in ``directory``; None when there is none at all.

    A damaged one is named to ``warn`` and the one before it is taken. When all are damaged that is a CheckpointError:
    a run must not start over silently.
    """
    candidates = sorted(step_directories(directory), key=manifest.step_of, reverse=True)
    for candidate in candidates:
        try:
            return _verified(candidate)
        except CheckpointError as error:
            warn(f"{error}; taking the checkpoint before it")
    if candidates:
        raise CheckpointError(
            f"all {len(candidates)} checkpoints in {directory} are damaged; "
            f"to start over, name another --run-dir or remove them"
        )
    return None


def step_directories(directory: Path) -> list[Path]:
    """Every step-N directory, valid or not."""
    if not directory.is_dir():
        return []
    return [path for path in directory.iterdir() if manifest.step_of(path) is not None and path.is_dir()]


def _verified(path: Path) -> Checkpoint:
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist")
    found = manifest.Manifest.parse(path / manifest.NAME)
    found.verify(path)
    return Checkpoint(path, found.step, found.world_size)


def _read_tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
