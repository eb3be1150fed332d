"""Which directory a run lives in, and which checkpoint it goes on from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bllpipe.config import Config, to_mapping
from bllpipe.config.stored import with_defaults
from bllpipe.errors import ConfigError
from bllpipe.run.checkpoint import Checkpoint, find_checkpoint, open_checkpoint
from bllpipe.run.differences import Change, changes, refuse_others


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


def changes_since(checkpoint: Checkpoint, config: Config, accepted: Sequence[str], directory: Path) -> list[Change]:
    """What is different in ``config``, all of it harmless or ``accepted``.

    Raises CheckpointError when there is nothing to compare with; ConfigError for any other change, and when
    ``directory`` holds later checkpoints, with the old values: after an interruption they would be taken for new ones.
    """
    found = changes(with_defaults(checkpoint.config()), to_mapping(config))
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
