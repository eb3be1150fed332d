"""The directory of a run, the checkpoint that it resumes from, and the keys of its configuration that may differ from
those of the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bllpipe.checkpoint import Checkpoint, find_checkpoint, open_checkpoint
from bllpipe.config import Config, to_mapping
from bllpipe.config.loader import flat, with_defaults
from bllpipe.errors import ConfigError
from bllpipe.utils.files import check_length, refused_paths

# Keys that do not change the results. ``replicas`` without a number of shards does: that is compared, too.
HARMLESS = (
    *("name", "stop_at", "replicas", "placement", "device", "data.path", "data.workers"),
    *("feedback.device", "feedback.ranks"),
    *("evaluate.ensemble", "model.recompute"),
)
HARMLESS_SECTIONS = ("backend.", "gpu.", "log.", "metrics.", "trace.", "checkpoint.")
SAME_BITS = ("ranks", "threads", "sequential", "streams")  # engines with the same results
ABSENT = "nothing"
LONGEST_FILE = ("checkpoints", f"step-{'0' * 18}.replaced-{'0' * 20}", ".rank-00000.safetensors")  # of a run


def choose_directory(config: Config, resume: str, run_dir: str | None, root: Path = Path("runs")) -> Path:
    """The run directory: ``run_dir``, that of the run to resume, or a new one under ``root``. ConfigError for one that
    cannot hold the files of a run, as their paths would be too long."""
    with refused_paths():
        path = _choose_directory(config, resume, run_dir, root)
        check_length(path.absolute().joinpath(*LONGEST_FILE))
    return path


def _choose_directory(config: Config, resume: str, run_dir: str | None, root: Path) -> Path:
    if run_dir is not None:
        path = Path(run_dir)
        if resume == "never" and (path / "config.yaml").exists():
            raise ConfigError(f"{path} holds a run already; add --resume auto to resume it, or use another --run-dir")
        return path
    if resume not in ("auto", "never"):
        return open_checkpoint(Path(resume)).path.parent.parent
    name = config.name or default_name(config)
    path, newest, number = root / name, None, 1
    while path.exists():
        newest, number = path, number + 1
        path = root / f"{name}-{number}"
    return newest if newest is not None and resume == "auto" else path


def default_name(config: Config) -> str:
    """Data, model and method, such as ``digits-resnet18-bll``."""
    model = config.model.name.rpartition(":")[2]
    return f"{config.data.name}-{model}-{config.method}"


def checkpoint_to_resume(
    resume: str, directory: Path, warn: Callable[[str], None], restarted: bool = False
) -> Checkpoint | None:
    """The checkpoint to resume from; None for a fresh start. ``resume`` is the argument of the command line: a
    ``restarted`` group resumes from its own checkpoints, and follows ``resume`` again only if it has none."""
    if restarted or resume == "auto":
        newest = find_checkpoint(directory / "checkpoints", warn)
        if newest is not None or resume in ("auto", "never"):
            return newest
    return None if resume == "never" else open_checkpoint(Path(resume))


def changes_since(
    checkpoint: Checkpoint, config: Config, accepted: Sequence[str], directory: Path, data: Change | None = None
) -> list[Change]:
    """The changes in ``config``, and in the ``data`` if they are others, all of them harmless or ``accepted``.

    Raises CheckpointError if the checkpoint holds no config; ConfigError for any other change, and if ``directory``
    holds later checkpoints, with the old values: after an interruption the run would resume from them.
    """
    then, now = (_with_shards(each) for each in (with_defaults(checkpoint.config()), to_mapping(config)))
    is_exact = config.norm == "shard" and config.reduce == "ordered"
    changed = [replace(each, is_exact=is_exact) for each in changes(then, now)] + ([data] if data else [])
    refuse_others(changed, accepted, str(checkpoint.path))
    if all(change.is_harmless for change in changed):
        return changed
    newest = find_checkpoint(directory / "checkpoints", warn=lambda text: None)
    if newest is not None and newest.step > checkpoint.step:
        raise ConfigError(
            f"{directory} has checkpoints up to step {newest.step} with the configuration of {checkpoint.path.name}; "
            f"to resume from there with another configuration, use another --run-dir"
        )
    return changed


def num_shards_of(checkpoint: Checkpoint) -> int:
    """The number of shards of the run that wrote it. Raises CheckpointError if it holds no config."""
    return int(_with_shards(with_defaults(checkpoint.config()))["shards"])


def _with_shards(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the number of shards that null stands for."""
    replicas = mapping["replicas"]
    most = max(replicas, default=1) if isinstance(replicas, list) else 1 if replicas == "auto" else replicas
    return {**mapping, "shards": most if mapping["shards"] is None else mapping["shards"]}


@dataclass(frozen=True)
class Change:
    """A key with the value ``then`` in the checkpoint and another one ``now``, both in JSON. ``is_exact``: sums over
    replicas have the same bits for any number of replicas."""

    key: str
    then: str
    now: str
    is_exact: bool = True

    def __str__(self) -> str:
        return f"{self.key}: {self.then} then, {self.now} now"

    @property
    def is_harmless(self) -> bool:
        """Whether the results do not change."""
        if self.key == "engine":
            return all(value in map(json.dumps, SAME_BITS) for value in (self.then, self.now))
        if self.key == "replicas" and not self.is_exact:
            return False
        return self.key in HARMLESS or self.key.startswith(HARMLESS_SECTIONS)

    def is_accepted(self, accepted: Sequence[str]) -> bool:
        """Whether ``accepted`` names the key, or a section that holds it."""
        return any(self.key == name or self.key.startswith(f"{name}.") for name in accepted)


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The differences between two configurations, nested mappings, in the order of the keys."""
    # values as JSON, so that those of a file and of the command line compare equal
    before, after = ({key: json.dumps(value) for key, value in flat(each).items()} for each in (then, now))
    pairs = ((key, before.get(key, ABSENT), after.get(key, ABSENT)) for key in sorted(before.keys() | after.keys()))
    return [Change(key, was, is_now) for key, was, is_now in pairs if was != is_now]


def refuse_others(changed: Sequence[Change], accepted: Sequence[str], written_by: str) -> None:
    """Raises ConfigError for changes that are neither harmless nor ``accepted``, all of them in one message."""
    refused = [change for change in changed if not change.is_harmless and not change.is_accepted(accepted)]
    if refused:
        lines = "".join(f"\n  {change}" for change in refused)
        keys = " ".join(change.key for change in refused)
        give = "put the old data back" if keys == "data" else "use the old values of these keys"
        raise ConfigError(
            f"{written_by} was written with another configuration:{lines}\n"
            f"{give}, or add --accept {keys} to resume with the new ones, "
            f"or start a new run with another --run-dir"
        )
