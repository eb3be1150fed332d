"""How the configuration of a run that goes on differs from that of its checkpoint: key by key, and whether it may."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bllpipe.errors import ConfigError

# Keys that change nothing in what is computed, or say only where and how.
HARMLESS = ("name", "stop_at", "device", "data.path", "data.workers", "feedback.device", "evaluate.ensemble")
HARMLESS_SECTIONS = ("backend.", "gpu.", "log.", "metrics.", "trace.", "checkpoint.")
SAME_BITS = ("ranks", "threads", "sequential", "streams")  # engines among which a run may change without another result
ABSENT = "nothing"


@dataclass(frozen=True)
class Change:
    """A key that had the value ``then`` when the checkpoint was written and has ``now`` another one, both in JSON."""

    key: str
    then: str
    now: str

    def __str__(self) -> str:
        return f"{self.key}: {self.then} then, {self.now} now"

    @property
    def is_harmless(self) -> bool:
        """Whether the results stay the same."""
        if self.key == "engine":
            return all(value in map(json.dumps, SAME_BITS) for value in (self.then, self.now))
        return self.key in HARMLESS or self.key.startswith(HARMLESS_SECTIONS)

    def is_accepted(self, accepted: Sequence[str]) -> bool:
        """Whether ``accepted`` names the key, or a section that it is in."""
        return any(self.key == name or self.key.startswith(f"{name}.") for name in accepted)


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs between two configurations, given as nested mappings, in the order of the keys."""
    before, after = _rendered(then), _rendered(now)
    pairs = ((key, before.get(key, ABSENT), after.get(key, ABSENT)) for key in sorted(before.keys() | after.keys()))
    return [Change(key, was, is_now) for key, was, is_now in pairs if was != is_now]


def refuse_others(found: Sequence[Change], accepted: Sequence[str], written_by: str) -> None:
    """Raises ConfigError for changes that are neither harmless nor ``accepted``, all of them in one message."""
    refused = [change for change in found if not change.is_harmless and not change.is_accepted(accepted)]
    if refused:
        lines = "".join(f"\n  {change}" for change in refused)
        keys = " ".join(change.key for change in refused)
        raise ConfigError(
            f"{written_by} was written with another configuration:{lines}\n"
            f"give these keys their old values, or add --accept {keys} to go on with the new ones, "
            f"or start a new run with another --run-dir"
        )


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    pairs: dict[str, Any] = {}
    for key, value in mapping.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return pairs


def _rendered(mapping: Mapping[str, Any]) -> dict[str, str]:
    """Values as JSON, so that what was read from a file compares with what was not."""
    return {key: json.dumps(value) for key, value in flat(mapping).items()}
