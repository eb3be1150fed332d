"""``bllpipe watch RUN``: follows a run by its files, from any terminal. Imports no torch."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bllpipe.errors import ConfigError


def add_watch(commands: Any) -> None:
    """The command ``watch``."""
    watch = commands.add_parser("watch", help="follow a run by its files, from any terminal")
    watch.add_argument("directory", metavar="RUN", help="a run directory, such as runs/NAME")
    watch.add_argument(
        "--output",
        choices=("auto", "live", "plain", "json"),
        default="auto",
        help="auto (default): a table that is redrawn on a terminal, else the table once a change",
    )
    watch.add_argument("--once", action="store_true", help="show what is known now, and end")
    watch.set_defaults(run=_watch)


def _watch(options: argparse.Namespace, words: Sequence[str]) -> int:
    from bllpipe.terminal.following import Follower  # and rich
    from bllpipe.terminal.live import draw
    from bllpipe.terminal.screen import can_draw

    path = Path(options.directory)
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{path} holds no config.yaml; needed is the directory of a run, such as runs/NAME")
    run, show = Follower(path), _json if options.output == "json" else _plain
    run.look()
    drawn = options.output == "live" or (options.output == "auto" and can_draw(sys.stdout))
    try:
        if drawn and not options.once and _runs(run):
            draw(sys.stdout)(run, lambda seconds: _pause(seconds) or not _runs(run))
        show(run)
        while not drawn and not options.once and _runs(run):
            _show_changes(run, show)
    except KeyboardInterrupt:
        return 130
    return 0


def _show_changes(run: Any, show: Any) -> None:
    before = run.step, run.status
    _pause(1.0)
    run.look()
    if (run.step, run.status) != before:
        show(run)


def _runs(run: Any) -> bool:
    return bool(run.status.get("status") == "running")


def _pause(seconds: float) -> bool:
    return threading.Event().wait(seconds)


def _plain(run: Any) -> None:
    from bllpipe.terminal.view import lines

    unicode = "utf" in (sys.stdout.encoding or "").lower()
    print("\n".join(lines(run, _width(), unicode=unicode)), flush=True)


def _width() -> int:
    from rich.console import Console

    return Console(file=sys.stdout).width


def _json(run: Any) -> None:
    from bllpipe.terminal.live import snapshot

    print(snapshot(run), flush=True)
