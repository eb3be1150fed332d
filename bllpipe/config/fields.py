"""A key of the configuration: a field with its default, its meaning and its range."""

from __future__ import annotations

from dataclasses import field
from typing import Any

USER_OBJECT = "user_object"  # in the metadata of a field that is not a key
NEVER = "never"  # a value of keys for intervals


def user_object() -> Any:
    """A field for an object that a script passes in place of a name. It is not a key: no file reads or stores it."""
    return field(default=None, repr=False, compare=False, metadata={USER_OBJECT: True})


def key(default: Any, doc: str, *, least: float | None = None, most: float | None = None) -> Any:
    """A config key: its default, its meaning in one line, and the closed range it may take."""
    metadata = {"doc": doc, "least": least, "most": most}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
