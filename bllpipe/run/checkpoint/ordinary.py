"""Files are only opened if they are files: a pipe would be waited for, a device has no end, and a link may point to
anything, later to something else."""

from __future__ import annotations

import stat
from pathlib import Path

from bllpipe.errors import CheckpointError

KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def ordinary_size(path: Path) -> int:
    """The size of the file in bytes; CheckpointError when it is missing, or anything but an ordinary file."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise CheckpointError(f"{path} is damaged: it is {kind}; needed is the file that was written there")
    return found.st_size
