"""How far a run is: a line a second on a terminal, plain lines in a log, JSON, or a live table drawn from its files."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from bllpipe.messages import Store
from bllpipe.tools.monitoring.live_table import Screen, lines, release
from bllpipe.tools.monitoring.run_status import Follower
from bllpipe.utils.console import is_terminal, put, say
from bllpipe.utils.job_control import around_suspension

EVERY_SECONDS = 0.5
LEAVING_SECONDS = 2.0  # for a terminal that blocks
Wait = Callable[[float], bool]  # sleeps for so many seconds; whether it is enough
Show = Callable[[Follower, Wait], None]


class Progress:
    """Reads the latest figures of every block from the store and prints them, in a thread of its own."""

    def __init__(
        self,
        store: Store,
        actors: Sequence[str],
        first_step: int,
        last_step: int,
        out: TextIO,
        plain_seconds: float,
        moves: bool = True,
    ) -> None:
        """``moves``: whether ``out``, if it is a terminal, can move its cursor."""
        self._store, self._actors, self._out = store, actors, out
        self._first_step, self._last_step = first_step, last_step
        self._terminal = moves and is_terminal(out)
        self._every = 1.0 if self._terminal else plain_seconds
        self._stop, self._started = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        if self._terminal:
            put("\n", self._out)

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            figures = self._figures()
            if figures:
                line = self.line(figures, time.monotonic() - self._started)
                put(f"\r\x1b[2K{line}" if self._terminal else f"{line}\n", self._out)

    def _figures(self) -> list[dict[str, Any]]:
        """The newest figures of every block; empty until all have some."""
        keys = [f"progress/{actor}" for actor in self._actors]
        if not all(self._store.check([key]) for key in keys):
            return []
        return [json.loads(self._store.get(key)) for key in keys]

    def line(self, figures: Sequence[dict[str, Any]], seconds: float) -> str:
        """Step, rate, loss and test accuracy of every block, time left; the last block is the one that counts."""
        step = figures[-1]["step"]
        parts = [f"step {step}/{self._last_step}"]
        if "images_per_second" in figures[-1]:
            parts.append(f"{figures[-1]['images_per_second']:.0f} images/s")
        if all("loss" in figure for figure in figures):
            parts.append("loss " + " ".join(f"{figure['loss']:.3f}" for figure in figures))
        if all("test_accuracy" in figure for figure in figures):
            parts.append("test % " + " ".join(f"{100 * figure['test_accuracy']:.1f}" for figure in figures))
        done = step - self._first_step
        if done > 0:
            parts.append(f"{_clock(seconds / done * (self._last_step - step))} left")
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Live:
    """To be entered while the run trains. Whatever goes wrong with the drawing, the run goes on."""

    def __init__(self, directory: Path, last_step: int, show: Show) -> None:
        self._directory, self._last_step, self._show = directory, last_step, show
        self._stop, self._suspension = threading.Event(), around_suspension(lambda: release(sys.stdout))
        self._thread = threading.Thread(target=self._run, name="live view", daemon=True)

    def __enter__(self) -> Live:
        self._suspension.__enter__()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(LEAVING_SECONDS)
        self._suspension.__exit__(None, None, None)

    def _run(self) -> None:
        with suppress(Exception):  # a run whose files cannot be read, or output taken, is a run without a view
            self._show(Follower(self._directory, self._last_step), self._stop.wait)


def draw(out: TextIO) -> Show:
    """A table that is redrawn in place."""

    def show(run: Follower, wait: Wait) -> None:
        with around_suspension(lambda: release(out)), Screen(out) as screen:
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
