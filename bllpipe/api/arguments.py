"""Arguments of a script as the plain values of a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import numpy as np
from torch import Tensor

from bllpipe.errors import ConfigError


def plain(value: Any) -> Any:
    """Lists for tuples, ranges and arrays; Python's numbers and text for those of NumPy and torch; paths as text."""
    if isinstance(value, (np.generic, np.ndarray, Tensor)):
        return value.tolist()
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (tuple, list, range)) else value


def whole_number(name: str, value: Any, least: int) -> int:
    """An argument that is a whole number of at least ``least``; ConfigError for anything else."""
    number = plain(value)
    if not isinstance(number, int) or isinstance(number, bool) or number < least:
        raise ConfigError(f"{name} is {number!r:.80}; expected at least {least}, a whole number")
    return number


def path_text(name: str, value: Any, hint: str) -> str:
    """The text of a path; ConfigError, which ends with ``hint``, for anything else."""
    if not isinstance(value, (str, PathLike)) or isinstance(fspath(value), bytes):
        raise ConfigError(f"{name} is a {type(value).__name__}; expected text or a path; {hint}")
    return fspath(value)
