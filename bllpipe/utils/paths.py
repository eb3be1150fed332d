"""Paths that a user types: what the system refuses of them ends in a message, and so does a file that a command cannot
write.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bllpipe.errors import BllpipeError, ConfigError
from bllpipe.utils.files import free_room

MAX_NAME, MAX_PATH = 255, 4095  # bytes, on Linux
MAX_SHOWN = 200  # characters of a path in a message
# What to do about a path that the system refuses; for all other reasons: to name another one.
REMEDIES = {
    errno.ENAMETOOLONG: f"expected names of at most {MAX_NAME} bytes, and a path of at most {MAX_PATH:,}; shorten it",
    errno.EACCES: "expected a place that this user may read and write; change its mode, or name another",
    errno.ELOOP: "expected no links in a circle; remove one, or name another place",
}


@contextmanager
def refused_paths() -> Iterator[None]:
    """Raises ConfigError in place of an OSError that names a file: for the paths that a user types."""
    try:
        yield
    except OSError as error:
        if error.filename is None or isinstance(error, BrokenPipeError):
            raise
        raise ConfigError(
            f"{_shortened(error.filename)} cannot be used: {error.strerror}; "
            f"{REMEDIES.get(error.errno or 0, 'name another place')}"
        ) from error
    except RuntimeError as error:  # of Path.resolve, before Python 3.13
        if not str(error).startswith("Symlink loop"):
            raise
        raise ConfigError(f"{_shortened(error)}; {REMEDIES[errno.ELOOP]}") from error


def check_length(path: Path) -> None:
    """Raises the OSError of a path that is too long also while its directories do not exist."""
    if len(os.fsencode(path)) > MAX_PATH or any(len(os.fsencode(part)) > MAX_NAME for part in path.parts):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))


def _shortened(name: object) -> str:
    text = os.fsdecode(name) if isinstance(name, bytes) else str(name)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text):,} characters)"


def write_result(path: Path, text: str) -> None:
    """Writes a file that a command was asked for, in UTF-8; what is not UTF-8 in it, such as a run's name, as escapes.
    Raises BllpipeError, so that half a file on a full disk has not the exit code of a whole one."""
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise BllpipeError(f"cannot write {_shortened(path)}: {error.strerror}; {free_room(path)}") from error
