"""What lies among the checkpoints of a run, whole or not, and what is wrong with it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bllpipe.errors import CheckpointError
from bllpipe.run.checkpoint.manifest import Manifest
from bllpipe.run.checkpoint.names import MANIFEST, DirectoryName
from bllpipe.run.checkpoint.reading import Checkpoint, checkpoint_folder, checkpoints_in, misnamed_checkpoints

State = Literal["whole", "moved aside", "damaged", "partial", "misnamed"]


@dataclass(frozen=True)
class Found:
    """One directory; ``bytes`` are those on the disk, ``num_ranks`` is None if no manifest tells it."""

    name: str
    state: State
    step: int | None
    num_ranks: int | None
    bytes: int
    age_seconds: float
    problems: tuple[str, ...] = ()

    @property
    def can_be_resumed(self) -> bool:
        return self.state in ("whole", "moved aside")


def survey(path: Path, sizes_only: bool = False) -> list[Found]:
    """The step directory ``path``, or all that lie in a run or checkpoints directory, in the order in which they are
    tried: the newest first. With ``sizes_only`` no file but the manifests is read.

    Raises CheckpointError when there is nothing.
    """
    one = DirectoryName.parse(path.resolve().name)
    if one is not None:
        return [_found(path.resolve(), one, sizes_only)]
    folder = checkpoint_folder(path)
    found = [_found(each, name, sizes_only) for name, each in checkpoints_in(folder)]
    found += [_misnamed(each) for each in misnamed_checkpoints(folder)]
    if not found:
        raise CheckpointError(f"{path} holds no checkpoint; name a run directory or one of its checkpoints/step-N")
    return found


def next_to_resume(found: Sequence[Found]) -> Found | None:
    """The one that ``--resume auto`` takes."""
    return next((each for each in found if each.can_be_resumed), None)


def _found(path: Path, name: DirectoryName, sizes_only: bool) -> Found:
    if name.state == "partial":
        return Found(path.name, "partial", name.step, None, _bytes_in(path), _age(path))
    try:
        manifest = Manifest.read(path)
    except CheckpointError as error:
        return Found(path.name, "damaged", name.step, None, _bytes_in(path), _age(path), (str(error),))
    problems = tuple(_problems(path, manifest, sizes_only))
    state: State = "damaged" if problems else "moved aside" if name.state == "replaced" else "whole"
    age = _age(path / MANIFEST)
    return Found(path.name, state, name.step, manifest.world_size, _bytes_in(path), age, problems)


def _problems(path: Path, manifest: Manifest, sizes_only: bool) -> Iterator[str]:
    """What is wrong with the files; if they are those that were written, also what cannot be read in them."""
    damaged = False
    for problem in manifest.problems(path, sizes_only):
        damaged = True
        yield problem
    if damaged or sizes_only:
        return
    try:
        checkpoint = Checkpoint(path, manifest.step, manifest.world_size)
        checkpoint.mapped()
        checkpoint.facts()
    except CheckpointError as error:
        yield str(error)


def _misnamed(path: Path) -> Found:
    problem = f"{path} holds a manifest, but has not the name of a checkpoint, such as step-00000120"
    return Found(path.name, "misnamed", None, None, _bytes_in(path), _age(path), (problem,))


def _bytes_in(path: Path) -> int:
    """Of the files that lie in a directory, 0 if it is none."""
    try:
        return sum(file.lstat().st_size for file in path.iterdir())
    except OSError:
        return 0


def _age(path: Path) -> float:
    """Seconds since it was written."""
    try:
        return max(time.time() - path.lstat().st_mtime, 0.0)
    except OSError:
        return 0.0
