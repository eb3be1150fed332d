"""Whether the ranks of a job suit each other: the same bllpipe, the same format of messages, the same configuration.

The first rank says over the store what it is and has; every other one compares itself before anything else is sent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bllpipe.config import Config, to_mapping
from bllpipe.errors import ConfigError
from bllpipe.ports import Store
from bllpipe.run.differences import Change, changes
from bllpipe.version import __version__
from bllpipe.wire.layout import VERSION

# Keys that a rank reads for itself alone, so that another value does no harm.
OWN_KEYS = ("name", "data.path", "data.workers", "feedback.device")
OWN_SECTIONS = ("log.",)


def introduce(config: Config, store: Store) -> None:
    """Says what the first rank is."""
    store.set("first", json.dumps({**_versions(), "config": to_mapping(config), "given": _given(config)}))


def compare_with_first(config: Config, store: Store) -> None:
    """Raises ConfigError, naming both sides, unless this rank is what the first one is."""
    first: dict[str, Any] = json.loads(store.get("first"))
    theirs, ours = {key: first.get(key) for key in _versions()}, _versions()
    if theirs != ours:
        raise ConfigError(
            f"rank 0 speaks {_described(theirs)}, this rank {_described(ours)}; "
            f"install the same bllpipe on all machines"
        )
    differing = [change for change in changes(first["config"], to_mapping(config)) if not _is_own(change.key)]
    if differing:
        raise ConfigError(
            f"rank 0 has another configuration than this rank:{_lines(differing)}\n"
            f"start all ranks with the same config file and the same words"
        )
    _compare_given(first.get("given", {}), _given(config))


def _given(config: Config) -> dict[str, str]:
    """Digests of what a script has passed as objects; of a function there is none."""
    given = {"model": config.model.given, "data": config.data.given}
    return {name: thing.digest() for name, thing in given.items() if hasattr(thing, "digest")}


def _compare_given(theirs: dict[str, str], ours: dict[str, str]) -> None:
    differing = [name for name in ("model", "data") if theirs.get(name) != ours.get(name)]
    if differing:
        raise ConfigError(
            f"rank 0 was given another {' and other '.join(differing)} than this rank: every rank runs the script, and "
            f"what it draws at random differs; begin it with torch.manual_seed(0), or pass a function that builds the "
            f"model"
        )


def _versions() -> dict[str, Any]:
    return {"messages": VERSION, "bllpipe": __version__}


def _described(versions: dict[str, Any]) -> str:
    return f"version {versions['messages']} of the messages (bllpipe {versions['bllpipe']})"


def _lines(differing: Sequence[Change]) -> str:
    return "".join(f"\n  {change.key}: {change.then} in rank 0, {change.now} here" for change in differing)


def _is_own(key: str) -> bool:
    return key in OWN_KEYS or key.startswith(OWN_SECTIONS)
