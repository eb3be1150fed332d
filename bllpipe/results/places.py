"""The places that a user names: run directories to read, and files to write. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from bllpipe.errors import ConfigError


def run_directory(text: str) -> Path:
    """The run directory called ``text``; ConfigError when it is not one."""
    path = Path(text)
    if not path.is_dir():
        raise ConfigError(f"{path} is not a directory; needed is that of a run, such as runs/digits-resnet18-bll")
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} holds no config.yaml, so it is not the directory of a run; name one under runs/")
    return path


def output_file(text: str) -> Path:
    """The file called ``text``, which need not exist; ConfigError when its folder does not."""
    path = Path(text)
    if path.is_dir():
        raise ConfigError(f"{path} is a directory; needed is the name of a file, such as {path}/FILE")
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no directory {path.parent}; make it, or name another")
    return path
