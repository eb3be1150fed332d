"""``bllpipe watch`` and ``bllpipe health``: the state of a run, read from its files in any terminal."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bllpipe.errors import BllpipeError, ConfigError
from bllpipe.tools.monitoring.run_status import RUNS, WITHIN_SECONDS, Follower, Health, health_of, newest
from bllpipe.utils.console import show, warn

EVERY_SECONDS = 1.0
UNHEALTHY = 1  # exit code: for watch, the run's status is "running", but it has written nothing for too long


def add_watch(commands: Any) -> None:
    """Adds the command ``watch``."""
    watch = commands.add_parser("watch", help="follow a run in any terminal, by its files")
    watch.add_argument(
        "--output",
        choices=("auto", "live", "plain", "json"),
        default="auto",
        help="auto (default): a live table on a terminal, else the table after every change",
    )
    watch.add_argument("--once", action="store_true", help="print the current state, and exit")
    _add_run(watch, "exit when the run has written nothing for so long")
    watch.set_defaults(run=_watch)


def _add_run(parser: argparse.ArgumentParser, within: str) -> None:
    parser.add_argument("directory", nargs="?", metavar="RUN", help="a run directory (default: the newest in runs/)")
    within += " (default: %(default)g)"
    parser.add_argument("--within", type=float, default=WITHIN_SECONDS, metavar="SECONDS", help=within)


def _watch(options: argparse.Namespace, words: Sequence[str]) -> int:
    from bllpipe.tools.monitoring.live_table import can_draw
    from bllpipe.tools.monitoring.progress import draw

    def has_ended(seconds: float) -> bool:
        return threading.Event().wait(seconds) or not _is_active(run, options.within)

    run = _open(options.directory)
    run.refresh()
    live = options.output == "live" or (options.output == "auto" and can_draw(sys.stdout))
    try:
        if not options.once and _is_active(run, options.within):
            if live:
                draw(sys.stdout)(run, has_ended)
            else:
                _show_changes(run, options)
        _show(run, options.output)
    except KeyboardInterrupt:
        return 130
    if options.once or run.status.get("status") != "running":
        return 0
    reason = health_of(run.directory, options.within).reason
    warn(f"{reason}: its processes may be gone; use --resume auto to continue the run")
    return UNHEALTHY


def _open(text: str | None) -> Follower:
    """Raises ConfigError where there is no run, or its config is of another version."""
    path = Path(text) if text else newest(RUNS)
    if path is None:
        raise ConfigError(f"there is no run in {RUNS}/; name a run directory: bllpipe watch RUN")
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} holds no config.yaml; expected a run directory, such as runs/NAME")
    try:
        return Follower(path)
    except BllpipeError as error:
        raise ConfigError(
            f"{path}/config.yaml cannot be read: {error}; use the version of bllpipe that env.json there names"
        ) from error


def _show_changes(run: Follower, options: argparse.Namespace) -> None:
    """Prints the run after every change but the last, which the caller prints."""
    shown = None
    while _is_active(run, options.within):
        if (run.step, run.status) != shown:
            shown = run.step, run.status
            _show(run, options.output)
        threading.Event().wait(EVERY_SECONDS)
        run.refresh()


def _is_active(run: Follower, within: float) -> bool:
    """Whether the run is running and healthy."""
    return run.status.get("status") == "running" and health_of(run.directory, within).is_healthy


def _show(run: Follower, output: str) -> None:
    from rich.console import Console

    from bllpipe.tools.monitoring.live_table import lines
    from bllpipe.tools.monitoring.progress import snapshot

    if output == "json":
        show(snapshot(run))
    else:
        unicode = "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()
        show("\n".join(lines(run, Console(file=sys.stdout).width, unicode=unicode)))


def add_health(commands: Any) -> None:
    """Adds the command ``health``."""
    health = commands.add_parser(
        "health", help="check whether a run is healthy: exit code 0 or 1, and the reason in one line"
    )
    _add_run(health, "a running run that has written nothing for so long is unhealthy")
    health.set_defaults(run=_health)


def _health(options: argparse.Namespace, words: Sequence[str]) -> int:
    directory = Path(options.directory) if options.directory else newest(RUNS)
    found = health_of(directory, options.within) if directory else Health(False, f"there is no run in {RUNS}/")
    show(found.reason)
    return 0 if found.is_healthy else UNHEALTHY
