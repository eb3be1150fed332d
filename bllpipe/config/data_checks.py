"""Impossible combinations of the keys of ``data``."""

from __future__ import annotations

from bllpipe.config.schema import Config
from bllpipe.errors import ConfigError

WITHOUT_PATH = ("digits", "synthetic", "given")
NEED_PATH = ("imagefolder", "npz")
REPLACED = {"crop_padding": 1, "flip": False, "rotation": 10.0}  # by a recipe; their defaults


def check_data(config: Config) -> None:
    """Raises ConfigError for the first one."""
    data, changes = config.data, config.data.augment
    if data.name in NEED_PATH and data.path is None:
        raise ConfigError(f"data.name {data.name} expected data.path, got null; use --set data.path=PATH")
    if data.name in WITHOUT_PATH and data.path is not None:
        raise ConfigError(f"data.path is {data.path!r:.200}, but {data.name} reads no files; leave it out")
    idle = [name for name, default in REPLACED.items() if getattr(changes, name) not in (0, default)]
    if changes.recipe != "none" and idle:
        raise ConfigError(
            f"data.augment.{idle[0]} is {getattr(changes, idle[0])}, but data.augment.recipe is {changes.recipe}, "
            f"which takes its place; leave one of them out"
        )
