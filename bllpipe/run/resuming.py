"""Which directory a run lives in, and which checkpoint it goes on from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bllpipe.config import Config, to_mapping
from bllpipe.errors import ConfigError
from bllpipe.run.checkpoint import Checkpoint, find_checkpoint, open_checkpoint

# Keys that change nothing in what is computed, or say only where and how.
HARMLESS = ("name", "engine", "stop_at", "device", "data.path", "data.workers", "feedback.device")
HARMLESS_SECTIONS = ("backend.", "log.", "metrics.", "trace.", "checkpoint.")


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
    config: Config, resume: str, directory: Path, warn: Callable[[str], None]
) -> Checkpoint | None:
    """The checkpoint that the run goes on from; None for a fresh start.

    Raises ConfigError when the checkpoint belongs to another configuration, key by key.
    """
    if resume == "never":
        return None
    found = find_checkpoint(directory / "checkpoints", warn) if resume == "auto" else open_checkpoint(Path(resume))
    if found is not None:
        _refuse_other_config(found, config)
    return found


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


def _refuse_other_config(checkpoint: Checkpoint, config: Config) -> None:
    then, now = flat(checkpoint.facts()[0]["config"]), flat(to_mapping(config))
    changed = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key) and not _harmless(key)]
    if changed:
        lines = "".join(f"\n  {key}: {then.get(key)!r} then, {now.get(key)!r} now" for key in changed)
        raise ConfigError(
            f"{checkpoint.path} was written with another configuration:{lines}\n"
            f"give these keys their old values, or start a new run with another --run-dir"
        )


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    pairs: dict[str, Any] = {}
    for key, value in mapping.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return pairs


def _harmless(key: str) -> bool:
    return key in HARMLESS or key.startswith(HARMLESS_SECTIONS)
