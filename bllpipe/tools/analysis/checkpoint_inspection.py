"""The checkpoints of a run, whole or not, what is wrong with each, and what one holds.

To show one only headers are read, so that a damaged or a very large checkpoint can be looked at too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bllpipe.checkpoint.format import FORMAT, MANIFEST, DirectoryName, Manifest, tensor_file
from bllpipe.checkpoint.reader import (
    Checkpoint,
    checkpoint_folder,
    checkpoints_at,
    checkpoints_in,
    misnamed_checkpoints,
    read_metadata,
    tensor_entries,
)
from bllpipe.config import Config, to_mapping
from bllpipe.config.loader import flat
from bllpipe.errors import CheckpointError
from bllpipe.utils.console import size_text

State = Literal["whole", "moved aside", "damaged", "partial", "misnamed"]


@dataclass(frozen=True)
class CheckpointInfo:
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


def list_checkpoints(path: Path, sizes_only: bool = False) -> list[CheckpointInfo]:
    """The step directory ``path``, or all that lie in a run or checkpoints directory, in the order in which they are
    tried: the newest first. With ``sizes_only`` no file but the manifests is read.

    Raises CheckpointError when there is nothing.
    """
    one = DirectoryName.parse(path.resolve().name)
    if one is not None:
        return [_found(path.resolve(), one, sizes_only)]
    folder = checkpoint_folder(path)
    found = [_found(each, name, sizes_only) for name, each in checkpoints_in(folder)]
    for each in misnamed_checkpoints(folder):
        problem = f"{each} holds a manifest, but has not the name of a checkpoint, such as step-00000120"
        found.append(CheckpointInfo(each.name, "misnamed", None, None, _bytes_in(each), _age(each), (problem,)))
    if not found:
        raise CheckpointError(f"{path} holds no checkpoint; use a run directory or one of its checkpoints/step-N")
    return found


def next_to_resume(found: Sequence[CheckpointInfo]) -> CheckpointInfo | None:
    """The one that ``--resume auto`` takes."""
    return next((each for each in found if each.can_be_resumed), None)


def _found(path: Path, name: DirectoryName, sizes_only: bool) -> CheckpointInfo:
    if name.state == "partial":
        return CheckpointInfo(path.name, "partial", name.step, None, _bytes_in(path), _age(path))
    try:
        manifest = Manifest.read(path)
    except CheckpointError as error:
        return CheckpointInfo(path.name, "damaged", name.step, None, _bytes_in(path), _age(path), (str(error),))
    problems = tuple(_problems(path, manifest, sizes_only))
    state: State = "damaged" if problems else "moved aside" if name.state == "replaced" else "whole"
    age = _age(path / MANIFEST)
    return CheckpointInfo(path.name, state, name.step, manifest.world_size, _bytes_in(path), age, problems)


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
        checkpoint.metadata()
    except CheckpointError as error:
        yield str(error)


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


def describe_checkpoint(path: Path) -> Iterator[str]:
    """The checkpoint at ``path``, or the newest of a run. Raises CheckpointError when its manifest cannot be trusted;
    what is wrong with another file stands in its place."""
    directory = checkpoints_at(path)[0]
    manifest = Manifest.read(directory)
    size = size_text(sum(entry.bytes for entry in manifest.files.values()))
    yield f"{directory.name}: step {manifest.step}, {manifest.world_size} ranks, {size}, format {FORMAT}"
    for name, file in sorted(manifest.files.items()):
        yield f"  {name:<24} {file.bytes:>14,} bytes  sha256 {file.sha256:.64}"
    yield from _as_far_as_read(_config(directory))
    for rank in range(manifest.world_size):
        yield from _as_far_as_read(_rank(directory, rank))


def _as_far_as_read(lines: Iterator[str]) -> Iterator[str]:
    """The lines, and in place of those that cannot be read why."""
    try:
        yield from lines
    except CheckpointError as error:
        yield f"  {error}"


def _config(directory: Path) -> Iterator[str]:
    config = read_metadata(directory, 0).get("config")
    if not isinstance(config, dict):
        yield "config: none is recorded"
        return
    then, default = flat(config), flat(to_mapping(Config()))
    other = [key for key in sorted(then.keys() | default.keys()) if then.get(key) != default.get(key)]
    yield f"config: {len(other)} keys differ from the default{':' if other else ''}"
    for key in other:
        yield f"  {_plain(key)}: {then.get(key)!r:.200} (default {default.get(key)!r})"


def _rank(directory: Path, rank: int) -> Iterator[str]:
    yield f"rank {rank}:"
    role = read_metadata(directory, rank).get("role")
    entries = tensor_entries(directory / tensor_file(rank))
    yield f"  {_plain(str(role))}, {len(entries)} tensors, {size_text(sum(entry.bytes for entry in entries.values()))}"
    width = max((len(_plain(name)) for name in entries), default=0)
    for name, entry in sorted(entries.items()):
        yield f"  {_plain(name):<{width}}  {entry.dtype:<5} {list(entry.shape)!s:<18} {entry.bytes:>14,} bytes"


def _plain(text: str) -> str:
    """A word out of a file, without what would move the cursor of a terminal, and not endlessly long."""
    return (text if text.isprintable() else repr(text))[:200]
