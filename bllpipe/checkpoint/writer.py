"""Writing a checkpoint: every rank writes its own shard when it finishes the step, and no rank waits for another.

rank-k.safetensors, rank-k.json    into step-N.partial-ATTEMPT, by every rank
manifest.json                      by the rank that finishes last
rename to step-N                   by the same; from now on the checkpoint exists
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bllpipe.checkpoint.format import MANIFEST, DirectoryName, FileEntry, Manifest, metadata_file, tensor_file
from bllpipe.checkpoint.reader import check_header
from bllpipe.checkpoint.sliced import save_one_by_one
from bllpipe.errors import OutputError, WireError
from bllpipe.messages import Store
from bllpipe.utils.console import warn
from bllpipe.utils.files import IfUnwritable, atomic_file, refusal, sync, write_record
from bllpipe.utils.slices import WholeTensors
from bllpipe.utils.tensors import plain

COMMITTED = "yes"
Point = Literal[
    "save",  # nothing is written
    "tensors",  # the tensor file is written under its temporary name
    "facts",  # the tensor file is in place, the metadata file is not written
    "manifest",  # all files are in place, the manifest is not written (in the last rank)
    "rename",  # the manifest is written, the directory is not renamed (in the last rank)
    "committed",  # the checkpoint is valid, older ones are not removed (in the last rank)
]
Reach = Callable[[Point, Path], None]  # and the file or directory that was written last


class CheckpointWriter:
    """Writes the checkpoints of one attempt. Through the store the ranks agree which one is the last of a step.

    ``attempt`` must be new for every start of the run, so that its directories differ from those of a killed start.
    Each rank writes a step once, and its steps in order. ``if_unwritable`` says what happens when the disk refuses:
    ``fail`` raises OutputError, ``go_on`` leaves this checkpoint out.
    """

    def __init__(
        self,
        directory: Path,
        store: Store,
        world_size: int,
        attempt: str,
        keep: int,
        if_unwritable: IfUnwritable = "fail",
    ) -> None:
        assert DirectoryName.parse(str(DirectoryName(0, "partial", attempt))), f"{attempt!r} cannot be part of a name"
        assert keep >= 1, "the checkpoint just written is always kept"
        self._directory, self._store, self._world_size = directory, store, world_size
        self._attempt, self._keep, self._if_unwritable = attempt, keep, if_unwritable
        self._calls: dict[Point, list[Callable[[int, Path], None]]] = {}

    def on(self, point: Point, call: Callable[[int, Path], None]) -> None:
        """From now on calls ``call`` at ``point`` of every checkpoint, with the step and the path that the point is
        about."""
        self._calls.setdefault(point, []).append(call)

    def _reach(self, step: int, point: Point, path: Path) -> None:
        for call in self._calls.get(point, ()):
            call(step, path)

    def write(self, step: int, rank: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Writes this rank's pair. The last rank to do so makes the checkpoint valid.

        The tensors must not change meanwhile.
        """
        partial = self._directory / str(DirectoryName(step, "partial", self._attempt))
        published: dict[str, Any]
        self._reach(step, "save", partial)
        try:
            partial.mkdir(parents=True, exist_ok=True)
            entries = write_shard(partial, rank, tensors, metadata, functools.partial(self._reach, step))
            published = {"files": {name: asdict(entry) for name, entry in entries.items()}}
        except (OSError, SafetensorError) as error:
            held = (tensors.tensors if isinstance(tensors, WholeTensors) else tensors).values()
            size = sum(tensor.numel() * tensor.dtype.itemsize for tensor in held)
            published = {"refused": self._refuse(step, rank, f"{size:,} bytes", partial, error)}
        self._store.set(f"checkpoint/{step}/{rank}", json.dumps(published))
        written = self._store.add(f"checkpoint/{step}/written", 1)
        assert written <= self._world_size, f"step {step} was written twice"
        if written == self._world_size:
            self._finish(step, rank, partial)

    def wait_committed(self, step: int) -> None:
        """Waits until every rank has written ``step`` and the checkpoint is valid. Raises OutputError when the disk has
        refused, WireError when another rank has not written its part in time."""
        try:
            outcome = self._store.get(f"checkpoint/{step}/committed").decode()
        except RuntimeError as error:
            raise WireError(
                f"the checkpoint of step {step} was not completed by all {self._world_size} ranks: {error}"
            ) from error
        if outcome != COMMITTED:
            raise OutputError(f"the last checkpoint, of step {step}, is not written: {outcome}")

    def _refuse(self, step: int, rank: int, what: str, partial: Path, error: Exception) -> str:
        """Why this checkpoint cannot be written. Raises OutputError if that ends the run, and then tells the ranks that
        wait for the checkpoint."""
        found = refusal(f"the checkpoint of step {step} ({what})", partial, error)
        if self._if_unwritable == "fail":
            self._store.set(f"checkpoint/{step}/committed", f"rank {rank} {found}")
            raise OutputError(f"rank {rank} {found}; the checkpoints before it are untouched") from error
        return f"rank {rank} {found}"

    def _finish(self, step: int, rank: int, partial: Path) -> None:
        """Makes the checkpoint valid, or removes its files, so that they do not fill the disk."""
        records = [json.loads(self._store.get(f"checkpoint/{step}/{other}")) for other in range(self._world_size)]
        refusals = [record["refused"] for record in records if "refused" in record]
        if not refusals:
            try:
                self._commit(step, partial, records)
            except OSError as error:
                refusals = [self._refuse(step, rank, "its manifest", partial, error)]
        if refusals:
            _remove(partial)
        self._store.set(f"checkpoint/{step}/committed", "; ".join(refusals) or COMMITTED)
        self._warn_of(step, refusals)
        if not refusals:
            self._reach(step, "committed", self._directory / str(DirectoryName(step)))
            self._remove_old(step)

    def _commit(self, step: int, partial: Path, records: list[dict[str, Any]]) -> None:
        self._reach(step, "manifest", partial)
        entries = {name: FileEntry(**entry) for record in records for name, entry in record["files"].items()}
        manifest = Manifest(step, self._world_size, entries)
        manifest.write(partial)
        _remove(*(path for path in partial.iterdir() if path.name not in {MANIFEST, *manifest.files}))
        sync(partial)
        self._reach(step, "rename", partial)
        final = self._directory / str(DirectoryName(step))
        if final.exists():  # it is moved aside, where readers find it if this process is killed before the rename
            aside = self._directory / str(DirectoryName(step, "replaced", self._attempt))
            _remove(aside)
            final.rename(aside)
        partial.rename(final)
        sync(self._directory)

    def _warn_of(self, step: int, refusals: list[str]) -> None:
        """Warns once when checkpoints begin to be left out, and once when they can be written again. Steps end in
        order, so the store tells the last rank of a step whether there was a warning before."""
        in_trouble = self._store.check(["checkpoint/trouble"]) and self._store.get("checkpoint/trouble") == b"yes"
        if refusals and not in_trouble:
            found = "; ".join(refusals)
            warn(f"{found}; the run goes on without (checkpoint.if_unwritable: go_on), and tries the next one")
        if in_trouble and not refusals:
            warn(f"checkpoints can be written again: that of step {step} is complete")
        if bool(refusals) != in_trouble:
            self._store.set("checkpoint/trouble", "yes" if refusals else "no")

    def _remove_old(self, step: int) -> None:
        """Removes, up to ``step``, all but the newest ``keep``, those moved aside, and what killed attempts left.

        A directory of a later step stays: it is not older than the checkpoint just written.
        """
        known = [name for name in _names_in(self._directory) if name.step <= step]
        whole = sorted((name for name in known if name.state == "whole"), key=lambda name: name.step)
        aside = [name for name in known if name.state == "replaced"]
        stale = [name for name in known if name.state == "partial" and name.attempt != self._attempt]
        _remove(*(self._directory / str(name) for name in [*whole[: -self._keep], *aside, *stale]))


def remove_unfinished(directory: Path) -> None:
    """Removes what killed attempts have begun in a directory of checkpoints. For a start, when no rank writes there."""
    _remove(*(directory / str(name) for name in _names_in(directory) if name.state == "partial"))


def _names_in(directory: Path) -> list[DirectoryName]:
    with suppress(OSError):
        found = [DirectoryName.parse(path.name) for path in directory.iterdir()]
        return [name for name in found if name is not None]
    return []


def _remove(*paths: Path) -> None:
    """Removes as much as it can: what stays does no harm."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def write_shard(
    directory: Path, rank: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], reach: Reach
) -> dict[str, FileEntry]:
    """Writes the pair of a rank durably; returns the manifest's entries for both files.

    Raises CheckpointError for so many tensors, or so much metadata, that they could not be read back.
    """
    pair = (directory / tensor_file(rank), directory / metadata_file(rank))
    with atomic_file(pair[0]) as temporary:
        if isinstance(tensors, WholeTensors):
            save_one_by_one(tensors, temporary)
        else:
            save_file(separate(tensors), temporary)
        reach("tensors", temporary)
        check_header(temporary)
    reach("facts", pair[0])
    write_record(pair[1], metadata)
    return {path.name: FileEntry.of(path) for path in pair}


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain tensors of which no two share memory, as the format wants them; copied only where they must be."""
    taken: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        values = plain(tensor)
        result[name] = values.clone() if values.untyped_storage().data_ptr() in taken else values
        taken.add(values.untyped_storage().data_ptr())
    return result
