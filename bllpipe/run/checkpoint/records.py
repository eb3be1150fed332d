"""Small JSON files: written durably, and read with a bound on their size and on their depth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bllpipe.errors import CheckpointError
from bllpipe.run.checkpoint.durable import unfinished
from bllpipe.run.checkpoint.ordinary import ordinary_size

MAX_BYTES = 4 << 20  # a manifest of 16,000 ranks; in memory JSON may take thirty times as much
MAX_DEPTH = 50


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes what ``read_record`` reads; raises CheckpointError when that would refuse it for its size."""
    content = render(record)
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"{path} would have {len(content):,} bytes; at most {MAX_BYTES:,} can be read back")
    with unfinished(path) as temporary:
        temporary.write_bytes(content)


def read_record(path: Path) -> tuple[dict[str, Any], bytes]:
    """The object in a file, and the bytes that stand there; CheckpointError if it is not one."""
    content = _read_bounded(path)
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object")
    if _is_deep(record):
        raise CheckpointError(f"{path} is damaged: it is nested deeper than {MAX_DEPTH} levels")
    return record, content


def render(record: Mapping[str, Any]) -> bytes:
    """One record has one rendering, so that bytes can be compared."""
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()


def _read_bounded(path: Path) -> bytes:
    ordinary_size(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"{path} is damaged: it has more than {MAX_BYTES:,} bytes")
    return content


def _is_deep(record: object) -> bool:
    """Whether whoever walks through ``record`` might run out of stack; looked at level by level."""
    level: list[Any] = [record]
    for _ in range(MAX_DEPTH):
        inner = [list(node.values()) if isinstance(node, dict) else node for node in level]
        level = [child for children in inner for child in children if isinstance(child, dict | list)]
        if not level:
            return False
    return True
