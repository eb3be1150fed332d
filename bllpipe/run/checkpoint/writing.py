"""Writing a checkpoint: every rank its own pair when it finishes the step, and nobody waits for another.

    rank-k.safetensors, rank-k.json   into step-N.partial-ATTEMPT, each fsynced and renamed
    manifest.json                     by whoever finishes last
    rename to step-N                  now it exists
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from bllpipe.errors import CheckpointError
from bllpipe.ports import Store
from bllpipe.run.checkpoint.manifest import NAME, FileEntry, Manifest, directory_name, file_entry, file_names, step_of
from bllpipe.run.checkpoint.reading import step_directories


class CheckpointWriter:
    """One rank's writer. Ranks find out through the store who is the last one."""

    def __init__(self, directory: Path, store: Store, world_size: int, attempt: str, keep: int) -> None:
        self._directory, self._store, self._world_size = directory, store, world_size
        self._attempt, self._keep = attempt, keep

    def write(self, step: int, rank: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Writes this rank's pair; the last rank to do so makes the checkpoint valid."""
        try:
            partial = self._partial(step)
            partial.mkdir(parents=True, exist_ok=True)
            entries = _write_pair(partial, rank, tensors, facts)
            self._store.set(f"checkpoint/{step}/{rank}", json.dumps(entries))
            if self._store.add(f"checkpoint/{step}/written", 1) == self._world_size:
                self._commit(step, partial)
        except OSError as error:
            where = error.filename or self._directory
            raise CheckpointError(
                f"cannot write the checkpoint of step {step} ({where}: {error.strerror}); free space or mend the "
                f"directory, then go on with --resume auto"
            ) from error

    def wait_committed(self, step: int) -> None:
        """Waits until all ranks have written ``step`` and it is valid."""
        self._store.get(f"checkpoint/{step}/committed")

    def _partial(self, step: int) -> Path:
        return self._directory / f"{directory_name(step)}.partial-{self._attempt}"

    def _commit(self, step: int, partial: Path) -> None:
        entries: dict[str, Any] = {}
        for rank in range(self._world_size):
            entries |= json.loads(self._store.get(f"checkpoint/{step}/{rank}"))
        files = {name: FileEntry(**entries[name]) for name in file_names(self._world_size)}
        _write_synced(partial / NAME, Manifest(step, self._world_size, files).to_json())
        _sync(partial)
        final = self._directory / directory_name(step)
        if final.exists():  # a resumed run comes to the same step again
            shutil.rmtree(final)
        partial.rename(final)
        _sync(self._directory)
        self._store.set(f"checkpoint/{step}/committed", "yes")
        self._tidy(step)

    def _tidy(self, step: int) -> None:
        """Removes what is older than the newest ``keep``, and what killed attempts left unfinished."""
        done = sorted(step_directories(self._directory), key=step_of)
        leftovers = [path for path in self._directory.glob("step-*.partial-*") if _is_stale(path, step, self._attempt)]
        for path in [*done[: -self._keep], *leftovers]:
            shutil.rmtree(path, ignore_errors=True)


def _is_stale(path: Path, step: int, attempt: str) -> bool:
    """Whether another attempt left this behind, for a step that is safely done now."""
    name, _, its_attempt = path.name.partition(".partial-")
    its_step = step_of(path.with_name(name))
    return its_step is not None and its_step <= step and its_attempt != attempt


def _write_pair(
    folder: Path, rank: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The two files of a rank; returns their entries in the manifest by name."""
    data, notes = folder / f"rank-{rank}.safetensors", folder / f"rank-{rank}.json"
    unfinished = data.with_name(f".{data.name}")
    save_file(_separate(tensors), unfinished)
    entry = file_entry(unfinished)
    _sync(unfinished)
    unfinished.rename(data)
    _write_synced(notes, json.dumps(facts, indent=1) + "\n")
    return {data.name: asdict(entry), notes.name: asdict(file_entry(notes))}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors of which no two share memory, as the format wants them."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        storage = plain.untyped_storage().data_ptr()
        separate[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return separate


def _write_synced(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)


def _sync(path: Path) -> None:
    """Makes a file's bytes, or a directory's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
