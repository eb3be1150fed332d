"""Writing a checkpoint: every rank its own pair when it finishes the step, and nobody waits for another.

rank-k.safetensors, rank-k.json    into step-N.partial-ATTEMPT, by every rank
manifest.json                      by the rank that finishes last
rename to step-N                   by the same; from now on the checkpoint exists
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from bllpipe.errors import CheckpointError
from bllpipe.ports import Store
from bllpipe.run.checkpoint.durable import sync
from bllpipe.run.checkpoint.manifest import FileEntry, Manifest
from bllpipe.run.checkpoint.names import MANIFEST, DirectoryName
from bllpipe.run.checkpoint.shard import write_shard


class CheckpointWriter:
    """Writes the checkpoints of one attempt. The ranks find out through the store who is the last one of a step.

    ``attempt`` must be new for every start of the run, so that what a killed start left behind is told apart;
    each rank writes a step once, and its steps in order.
    """

    def __init__(self, directory: Path, store: Store, world_size: int, attempt: str, keep: int) -> None:
        assert DirectoryName.parse(str(DirectoryName(0, "partial", attempt))), f"{attempt!r} cannot be part of a name"
        assert keep >= 1, "the checkpoint just written is always kept"
        self._directory, self._store, self._world_size = directory, store, world_size
        self._attempt, self._keep = attempt, keep

    def write(self, step: int, rank: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Writes this rank's pair; the last rank to do so makes the checkpoint valid.

        The tensors must not change meanwhile. Raises CheckpointError when the disk refuses.
        """
        partial = self._directory / str(DirectoryName(step, "partial", self._attempt))
        try:
            partial.mkdir(parents=True, exist_ok=True)
            if self._is_last(step, rank, write_shard(partial, rank, tensors, facts)):
                self._commit(step, partial)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"rank {rank} cannot write the checkpoint of step {step} to {partial}: {error}; "
                f"those before it are untouched: make room or mend the directory, and go on with --resume auto"
            ) from error

    def wait_committed(self, step: int) -> None:
        """Waits until every rank has written ``step`` and it is valid; CheckpointError when the store gives up."""
        try:
            self._store.get(f"checkpoint/{step}/committed")
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint of step {step} was not completed by all {self._world_size} ranks: {error}"
            ) from error

    def _is_last(self, step: int, rank: int, entries: Mapping[str, FileEntry]) -> bool:
        """Publishes what this rank has written, and counts."""
        record = {name: asdict(entry) for name, entry in entries.items()}
        self._store.set(f"checkpoint/{step}/{rank}", json.dumps(record))
        written = self._store.add(f"checkpoint/{step}/written", 1)
        assert written <= self._world_size, f"step {step} was written twice"
        return written == self._world_size

    def _commit(self, step: int, partial: Path) -> None:
        manifest = Manifest(step, self._world_size, self._published(step))
        manifest.write(partial)
        _remove(*(path for path in partial.iterdir() if path.name not in {MANIFEST, *manifest.files}))
        sync(partial)
        self._put_in_place(step, partial)
        self._store.set(f"checkpoint/{step}/committed", "yes")
        self._tidy(step)

    def _published(self, step: int) -> dict[str, FileEntry]:
        """The entries of all ranks."""
        entries: dict[str, FileEntry] = {}
        for rank in range(self._world_size):
            record = json.loads(self._store.get(f"checkpoint/{step}/{rank}"))
            entries |= {name: FileEntry(**entry) for name, entry in record.items()}
        return entries

    def _put_in_place(self, step: int, partial: Path) -> None:
        """Renames; one of the same step is moved aside first, where readers find it should we die in between."""
        final = self._directory / str(DirectoryName(step))
        if final.exists():
            aside = self._directory / str(DirectoryName(step, "replaced", self._attempt))
            _remove(aside)
            final.rename(aside)
        partial.rename(final)
        sync(self._directory)

    def _tidy(self, step: int) -> None:
        """Removes, up to ``step``, all but the newest ``keep``, those moved aside, and what killed attempts left.

        What has a later step stays: it is not older than the checkpoint just written, whatever it is worth.
        """
        found = [DirectoryName.parse(path.name) for path in self._directory.iterdir()]
        known = [name for name in found if name and name.step <= step]
        whole = sorted((name for name in known if name.state == "whole"), key=lambda name: name.step)
        aside = [name for name in known if name.state == "replaced"]
        stale = [name for name in known if name.state == "partial" and name.attempt != self._attempt]
        _remove(*(self._directory / str(name) for name in [*whole[: -self._keep], *aside, *stale]))


def _remove(*paths: Path) -> None:
    """Removes as much as it can: what stays is in nobody's way."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
