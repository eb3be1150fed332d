"""What is in a checkpoint, as lines of text: its manifest, its config, and the tensors of every rank. Only headers are
read, so that a damaged or a very large one can be looked at too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bllpipe.config import Config, to_mapping
from bllpipe.errors import CheckpointError
from bllpipe.run.checkpoint.manifest import FORMAT, Manifest
from bllpipe.run.checkpoint.names import tensor_file
from bllpipe.run.checkpoint.reading import checkpoints_at
from bllpipe.run.checkpoint.shard import read_facts
from bllpipe.run.checkpoint.tensors import TensorEntry, tensor_entries
from bllpipe.run.differences import flat
from bllpipe.run.units import size_text


def contents(path: Path) -> Iterator[str]:
    """The checkpoint at ``path``, or the newest of a run. Raises CheckpointError when its manifest cannot be trusted;
    what is wrong with another file stands in its place."""
    directory = checkpoints_at(path)[0]
    manifest = Manifest.read(directory)
    size = size_text(sum(entry.bytes for entry in manifest.files.values()))
    yield f"{directory.name}: step {manifest.step}, {manifest.world_size} ranks, {size}, format {FORMAT}"
    for name, file in sorted(manifest.files.items()):
        yield f"  {name:<24} {file.bytes:>14,} bytes  sha256 {file.sha256:.64}"
    yield from _told(_config(directory))
    for rank in range(manifest.world_size):
        yield from _told(_rank(directory, rank))


def _told(lines: Iterator[str]) -> Iterator[str]:
    """The lines, as far as they come."""
    try:
        yield from lines
    except CheckpointError as error:
        yield f"  {error}"


def _config(directory: Path) -> Iterator[str]:
    config = read_facts(directory, 0).get("config")
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
    role = read_facts(directory, rank).get("role")
    entries = tensor_entries(directory / tensor_file(rank))
    yield f"  {_plain(str(role))}, {len(entries)} tensors, {size_text(sum(entry.bytes for entry in entries.values()))}"
    width = max((len(_plain(name)) for name in entries), default=0)
    yield from (_row(_plain(name), width, entry) for name, entry in sorted(entries.items()))


def _row(name: str, width: int, entry: TensorEntry) -> str:
    return f"  {name:<{width}}  {entry.dtype:<5} {list(entry.shape)!s:<18} {entry.bytes:>14,} bytes"


def _plain(text: str) -> str:
    """A word out of a file, without what would move the cursor of a terminal, and not endlessly long."""
    return (text if text.isprintable() else repr(text))[:200]
