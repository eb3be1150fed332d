"""How a key of the configuration is declared: with its default, its meaning and its range."""

from __future__ import annotations

from dataclasses import field
from typing import Any

NEVER = "never"  # the value of keys that say how often something is done
GIVEN = "given"  # in the metadata of a field that is no key


def given_object() -> Any:
    """Where a script's own object stands in place of a name. It is no key: no file says it, and none keeps it."""
    return field(default=None, repr=False, compare=False, metadata={GIVEN: True})


def key(default: Any, doc: str, *, least: float | None = None, most: float | None = None) -> Any:
    """A config key: its default, its meaning in one line, and the closed range it may take."""
    metadata = {"doc": doc, "least": least, "most": most}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
