"""Configurations that an earlier version wrote beside a run: keys that have moved since, and keys that it did not have.

A file of a user's own that still has the old key is an error instead (``reading.py``): there the new one is soon typed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from bllpipe.config.reading import parse_config, to_mapping
from bllpipe.config.schema import Config
from bllpipe.config.strict_yaml import read_yaml

# Where a key went, and what its old value is there. ``gpu.channels_last: true`` had no effect on a CPU.
MOVED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "gpu.channels_last": ("channels_last", lambda value: "auto" if value is True else value),
}


def load_stored_config(path: str) -> Config:
    """The configuration in the ``config.yaml`` of a run directory, whichever version wrote it."""
    return parse_config(stored_mapping(path))


def stored_mapping(path: str) -> dict[str, Any]:
    """The same as nested dicts, with the keys of today."""
    return with_moved_keys(read_yaml(path))


def with_moved_keys(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """``mapping`` with every moved key in its new place, unless something stands there already."""
    found = deepcopy(dict(mapping))
    for old, (new, value_of) in MOVED.items():
        section, _, leaf = old.rpartition(".")
        keys = found.get(section)
        if isinstance(keys, dict) and leaf in keys:
            found.setdefault(new, value_of(keys.pop(leaf)))
    return found


def with_defaults(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """``mapping`` with moved keys in their new places, and with the defaults of the keys that it lacks: every new key
    has a default that changes nothing in what runs before it computed."""
    return _filled(with_moved_keys(mapping), to_mapping(Config()))


def _filled(mapping: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(mapping)
    for name, default in defaults.items():
        if name not in found:
            found[name] = default
        elif isinstance(default, Mapping) and isinstance(found[name], Mapping):
            found[name] = _filled(found[name], default)
    return found
