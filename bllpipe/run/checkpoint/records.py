"""Small JSON files: written durably, and read with a bound on their size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bllpipe.errors import CheckpointError
from bllpipe.run.checkpoint.durable import unfinished

MAX_BYTES = 16 << 20


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
    return record, content


def render(record: Mapping[str, Any]) -> bytes:
    """One record has one rendering, so that bytes can be compared."""
    return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()


def _read_bounded(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"{path} is damaged: it has more than {MAX_BYTES:,} bytes")
    return content
