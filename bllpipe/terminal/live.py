"""The live view beside a run: a thread of the process that prints follows the run's files and draws them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from bllpipe.errors import BllpipeError
from bllpipe.run.notices import say
from bllpipe.terminal.following import Follower
from bllpipe.terminal.screen import Screen
from bllpipe.terminal.view import lines

EVERY_SECONDS = 0.5
LEAVING_SECONDS = 2.0  # for a terminal that blocks

Wait = Callable[[float], bool]  # sleeps for so many seconds; whether it is enough
Show = Callable[[Follower, Wait], None]


class Live:
    """To be entered while the run trains. Whatever goes wrong with the drawing, the run goes on."""

    def __init__(self, directory: Path, last_step: int, show: Show) -> None:
        self._directory, self._last_step, self._show = directory, last_step, show
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live view", daemon=True)

    def __enter__(self) -> Live:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(LEAVING_SECONDS)

    def _run(self) -> None:
        with suppress(OSError, BllpipeError):  # a run whose files cannot be read is a run without a view
            self._show(Follower(self._directory, self._last_step), self._stop.wait)


def draw(out: TextIO) -> Show:
    """A table that is redrawn in place."""

    def show(run: Follower, wait: Wait) -> None:
        with Screen(out) as screen:
            while not wait(EVERY_SECONDS):
                run.look()
                screen.draw(lines(run, screen.width, screen.colours, screen.unicode))

    return show


def write_json(out: TextIO, every_seconds: float) -> Show:
    """An object a line, every so often."""

    def show(run: Follower, wait: Wait) -> None:
        while not wait(every_seconds):
            run.look()
            say(snapshot(run), out)

    return show


def snapshot(run: Follower) -> str:
    """All that is known of ``run`` as one JSON object in a line."""
    rows: list[dict[str, Any]] = []
    for row in run.ordered():
        record = asdict(row)
        del record["waited"]
        rows.append({**record, "busy": row.busy})
    facts = {"status": run.status.get("status"), "epoch": run.epoch, "step": run.step, "last_step": run.last_step}
    return json.dumps({"run": run.directory.name, **facts, "seconds_left": run.seconds_left, "ranks": rows})
