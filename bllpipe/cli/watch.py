"""``bllpipe watch`` and ``bllpipe health``: a run as its files show it, from any terminal."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bllpipe.errors import BllpipeError, ConfigError
from bllpipe.tools.monitoring.run_status import RUNS, WITHIN_SECONDS, Health, health_of, newest
from bllpipe.utils.console import show, warn

if TYPE_CHECKING:
    from bllpipe.tools.monitoring.run_status import Follower

EVERY_SECONDS = 1.0
SILENT = 1  # exit code: a run that says it runs, and has written nothing for too long


def add_watch(commands: Any) -> None:
    """The command ``watch``."""
    watch = commands.add_parser("watch", help="follow a run by its files, from any terminal")
    watch.add_argument("directory", nargs="?", metavar="RUN", help="a run directory (default: the newest in runs/)")
    watch.add_argument(
        "--output",
        choices=("auto", "live", "plain", "json"),
        default="auto",
        help="auto (default): a table that is redrawn on a terminal, else the table once a change",
    )
    watch.add_argument("--once", action="store_true", help="show what is known now, and end")
    watch.add_argument(
        "--within",
        type=float,
        default=WITHIN_SECONDS,
        metavar="SECONDS",
        help="follow a run no longer that has written nothing for so long (default: %(default)g)",
    )
    watch.set_defaults(run=_watch)


def _watch(options: argparse.Namespace, words: Sequence[str]) -> int:
    from bllpipe.tools.monitoring.live_table import can_draw

    run = _open(options.directory)
    run.look()
    drawn = options.output == "live" or (options.output == "auto" and can_draw(sys.stdout))
    try:
        if not options.once and _lasts(run, options.within):
            (_draw if drawn else _show_changes)(run, options)
        _show(run, options.output)
    except KeyboardInterrupt:
        return 130
    if options.once or not _runs(run):
        return 0
    warn(f"{health_of(run.directory, options.within).reason}: its processes may be gone; --resume auto goes on with it")
    return SILENT


def _open(text: str | None) -> Follower:
    """What follows the run; ConfigError where there is none, or its config is of another version."""
    from bllpipe.tools.monitoring.run_status import Follower

    path = Path(text) if text else newest(RUNS)
    if path is None:
        raise ConfigError(f"there is no run in {RUNS}/; needed is the directory of a run: bllpipe watch RUN")
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} holds no config.yaml; needed is the directory of a run, such as runs/NAME")
    try:
        return Follower(path)
    except BllpipeError as error:
        raise ConfigError(
            f"{path}/config.yaml cannot be read: {error}; needed is the version of bllpipe that env.json there names"
        ) from error


def _draw(run: Follower, options: argparse.Namespace) -> None:
    from bllpipe.tools.monitoring.progress import draw

    draw(sys.stdout)(run, lambda seconds: _pause(seconds) or not _lasts(run, options.within))


def _show_changes(run: Follower, options: argparse.Namespace) -> None:
    """All but the last, which is shown when the run is over."""
    shown = None
    while _lasts(run, options.within):
        if (run.step, run.status) != shown:
            shown = run.step, run.status
            _show(run, options.output)
        _pause(EVERY_SECONDS)
        run.look()


def _runs(run: Follower) -> bool:
    return bool(run.status.get("status") == "running")


def _lasts(run: Follower, within: float) -> bool:
    """Whether something may still come."""
    return _runs(run) and health_of(run.directory, within).is_well


def _pause(seconds: float) -> bool:
    return threading.Event().wait(seconds)


def _show(run: Follower, output: str) -> None:
    show(_json(run) if output == "json" else _table(run))


def _table(run: Follower) -> str:
    from rich.console import Console

    from bllpipe.tools.monitoring.live_table import lines

    unicode = "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()
    return "\n".join(lines(run, Console(file=sys.stdout).width, unicode=unicode))


def _json(run: Follower) -> str:
    from bllpipe.tools.monitoring.progress import snapshot

    return snapshot(run)


def add_health(commands: Any) -> None:
    """The command ``health``."""
    health = commands.add_parser("health", help="whether a run is well: exit code 0 or 1, and a line that says why")
    health.add_argument("directory", nargs="?", metavar="RUN", help="a run directory (default: the newest in runs/)")
    health.add_argument(
        "--within",
        type=float,
        default=WITHIN_SECONDS,
        metavar="SECONDS",
        help="a run that has written nothing for so long is not well (default: %(default)g)",
    )
    health.set_defaults(run=_health)


def _health(options: argparse.Namespace, words: Sequence[str]) -> int:
    directory = Path(options.directory) if options.directory else newest(RUNS)
    found = health_of(directory, options.within) if directory else Health(False, f"there is no run in {RUNS}/")
    show(found.reason)
    return 0 if found.is_well else 1
