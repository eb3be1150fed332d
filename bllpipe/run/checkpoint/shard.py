"""One rank's share of a checkpoint: tensors in a safetensors file, facts in a JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from bllpipe.run.checkpoint.durable import unfinished
from bllpipe.run.checkpoint.manifest import FileEntry
from bllpipe.run.checkpoint.names import facts_file, tensor_file
from bllpipe.run.checkpoint.records import read_record, write_record
from bllpipe.run.checkpoint.tensors import check_header
from bllpipe.run.digest import plain


def write_shard(
    directory: Path, rank: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> dict[str, FileEntry]:
    """Writes the pair of a rank durably; returns the manifest's entries for both files.

    Raises CheckpointError for so many tensors, or so many facts, that they could not be read back.
    """
    pair = (directory / tensor_file(rank), directory / facts_file(rank))
    with unfinished(pair[0]) as temporary:
        save_file(separate(tensors), temporary)
        check_header(temporary)
    write_record(pair[1], facts)
    return {path.name: FileEntry.of(path) for path in pair}


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
