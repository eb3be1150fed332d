"""Which directory a run lives in, which checkpoint it resumes from, and whether its configuration may differ from that
of the checkpoint, key by key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bllpipe.checkpoint import Checkpoint, find_checkpoint, open_checkpoint
from bllpipe.config import Config, to_mapping
from bllpipe.config.loader import with_defaults
from bllpipe.errors import ConfigError

# Keys that change nothing in what is computed, or say only where and how.
HARMLESS = ("name", "stop_at", "device", "data.path", "data.workers", "feedback.device", "evaluate.ensemble")
HARMLESS_SECTIONS = ("backend.", "gpu.", "log.", "metrics.", "trace.", "checkpoint.")
SAME_BITS = ("ranks", "threads", "sequential", "streams")  # engines among which a run may change without another result
ABSENT = "nothing"


def choose_directory(config: Config, resume: str, run_dir: str | None, root: Path = Path("runs")) -> Path:
    """The run directory: the one asked for, that of the run to resume, or a new one under ``root``."""
    if run_dir is not None:
        return _unused(Path(run_dir)) if resume == "never" else Path(run_dir)
    if resume not in ("auto", "never"):
        return open_checkpoint(Path(resume)).path.parent.parent
    name = config.name or default_name(config)
    taken = [path for path in _candidates(root, name) if path.exists()]
    if resume == "auto" and taken:
        return taken[-1]
    return next(path for path in _candidates(root, name, endless=True) if not path.exists())


def default_name(config: Config) -> str:
    """Data, model and method, such as ``digits-resnet18-bll``."""
    model = config.model.name.rpartition(":")[2]
    return f"{config.data.name}-{model}-{config.method}"


def checkpoint_to_resume(
    resume: str, directory: Path, warn: Callable[[str], None], restarted: bool = False
) -> Checkpoint | None:
    """The checkpoint that the run goes on from; None for a fresh start. ``resume`` is what the command line says: a
    ``restarted`` group goes on from what it has written itself, and only without that does it do the same again."""
    if restarted or resume == "auto":
        found = find_checkpoint(directory / "checkpoints", warn)
        if found is not None or resume in ("auto", "never"):
            return found
    return None if resume == "never" else open_checkpoint(Path(resume))


def changes_since(
    checkpoint: Checkpoint, config: Config, accepted: Sequence[str], directory: Path, data: Change | None = None
) -> list[Change]:
    """What is different in ``config``, and in the ``data`` if they are others, all of it harmless or ``accepted``.

    Raises CheckpointError when there is nothing to compare with; ConfigError for any other change, and when
    ``directory`` holds later checkpoints, with the old values: after an interruption they would be taken for new ones.
    """
    found = changes(with_defaults(checkpoint.config()), to_mapping(config)) + ([data] if data else [])
    refuse_others(found, accepted, str(checkpoint.path))
    if not all(change.is_harmless for change in found):
        _refuse_later(checkpoint, directory)
    return found


def _refuse_later(checkpoint: Checkpoint, directory: Path) -> None:
    newest = find_checkpoint(directory / "checkpoints", warn=lambda text: None)
    if newest is not None and newest.step > checkpoint.step:
        raise ConfigError(
            f"{directory} goes on to step {newest.step} with the configuration that {checkpoint.path.name} was written "
            f"with; to go on from there with another one, name another --run-dir"
        )


def _unused(path: Path) -> Path:
    if (path / "config.yaml").exists():
        raise ConfigError(f"{path} holds a run already; add --resume auto to go on with it, or name another --run-dir")
    return path


def _candidates(root: Path, name: str, endless: bool = False) -> Iterator[Path]:
    """name, name-2, name-3, ...: all of them, or those up to the first that is free."""
    number = 1
    while True:
        path = root / (name if number == 1 else f"{name}-{number}")
        yield path
        if not endless and not path.exists():
            return
        number += 1


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
        give = "give data.path the old data back" if keys == "data" else "give these keys their old values"
        raise ConfigError(
            f"{written_by} was written with another configuration:{lines}\n"
            f"{give}, or add --accept {keys} to go on with the new ones, "
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
