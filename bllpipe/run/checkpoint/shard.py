"""One rank's share of a checkpoint: tensors in a safetensors file, facts in a JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bllpipe.errors import CheckpointError
from bllpipe.run.checkpoint.durable import unfinished
from bllpipe.run.checkpoint.manifest import FileEntry
from bllpipe.run.checkpoint.names import facts_file, tensor_file
from bllpipe.run.checkpoint.records import read_record, write_record
from bllpipe.run.digest import plain


def write_shard(
    directory: Path, rank: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> dict[str, FileEntry]:
    """Writes the pair of a rank durably; returns the manifest's entries for both files."""
    pair = (directory / tensor_file(rank), directory / facts_file(rank))
    with unfinished(pair[0]) as temporary:
        save_file(separate(tensors), temporary)
    write_record(pair[1], facts)
    return {path.name: FileEntry.of(path) for path in pair}


def read_tensors(directory: Path, rank: int, prefix: str) -> dict[str, Tensor]:
    """The tensors of a rank whose names start with ``prefix``; the others are not read.

    They own their memory: the file is mapped while it is read, and may be removed afterwards.
    """
    path = directory / tensor_file(rank)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in list(file.keys()) if name.startswith(prefix)}
    except Exception as error:  # a hostile header can provoke nearly any of them
        raise CheckpointError(f"{path} is not a safetensors file that can be read: {error}") from error


def read_names(directory: Path, rank: int) -> list[str]:
    """The names of a rank's tensors."""
    path = directory / tensor_file(rank)
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except Exception as error:  # as above
        raise CheckpointError(f"{path} is not a safetensors file that can be read: {error}") from error


def read_facts(directory: Path, rank: int) -> dict[str, Any]:
    return read_record(directory / facts_file(rank))[0]


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain tensors of which no two share memory, as the format wants them; copied only where they must be."""
    taken: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        values = plain(tensor)
        result[name] = values.clone() if values.untyped_storage().data_ptr() in taken else values
        taken.add(values.untyped_storage().data_ptr())
    return result
