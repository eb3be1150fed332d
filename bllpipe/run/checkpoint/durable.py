"""Files that a kill or a power cut leaves either whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A temporary name for ``path``. On leaving, the file there is synced and renamed; after an error it is removed."""
    temporary = path.with_name(f".{path.name}")
    try:
        yield temporary
        with suppress(OSError):  # a file system without modes
            temporary.chmod(path.parent.stat().st_mode & 0o666)  # as the umask has it: safetensors makes private files
        sync(temporary)
        temporary.replace(path)
    except Exception:
        with suppress(OSError):
            temporary.unlink()
        raise


def sync(path: Path) -> None:
    """Waits until a file's bytes, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
