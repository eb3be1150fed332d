"""The progress display of a run: one line on a terminal, plain lines in a log, JSON, or a live table of its files."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bllpipe.engines import NETWORK, Callback
from bllpipe.messages import Store
from bllpipe.tools.monitoring.live_table import Screen, can_draw, clock, lines, release
from bllpipe.tools.monitoring.run_status import Follower
from bllpipe.utils.console import is_terminal, print_line, put
from bllpipe.utils.process import around_suspension

if TYPE_CHECKING:
    from bllpipe.engines.job import Job

EVERY_SECONDS = 0.5
JOIN_SECONDS = 2.0  # a terminal may block the thread that draws
Wait = Callable[[float], bool]  # sleeps for so many seconds; returns True to end the display
Show = Callable[[Follower, Wait], None]


class ProgressDisplay(Callback):
    """Displays the progress of a run as ``--output`` says."""

    def display(self, job: Job, store: Store) -> AbstractContextManager[object]:
        seconds, can_move = job.config.log.plain_seconds, can_draw(sys.stdout)
        if job.output == "quiet":
            return nullcontext()
        if job.output == "json":
            return Live(job.directory.path, job.schedule.last_step, write_json(sys.stdout, seconds))
        if job.output == "live" or (job.output == "auto" and can_move):
            return Live(job.directory.path, job.schedule.last_step, draw(sys.stdout))
        actors = (
            [NETWORK] if job.config.is_end_to_end else [f"block {block}" for block in range(job.topology.num_blocks)]
        )
        return Progress(store, actors, job.start, job.schedule.last_step, sys.stdout, seconds, can_move)

    def on_exit(self) -> None:
        release(sys.stdout)  # the rank that draws may have been killed


class Progress:
    """A thread that reads the latest metrics of every block from the store and prints them."""

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
        """``moves``: whether the cursor of ``out``, if it is a terminal, can be moved."""
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
        keys = [f"progress/{actor}" for actor in self._actors]
        while not self._stop.wait(self._every):
            if all(self._store.check([key]) for key in keys):
                metrics = [json.loads(self._store.get(key)) for key in keys]
                line = self.line(metrics, time.monotonic() - self._started)
                put(f"\r\x1b[2K{line}" if self._terminal else f"{line}\n", self._out)

    def line(self, metrics: Sequence[dict[str, Any]], seconds: float) -> str:
        """Step and rate of the last block, loss and test accuracy of every block, time left."""
        step = metrics[-1]["step"]
        parts = [f"step {step}/{self._last_step}"]
        if "images_per_second" in metrics[-1]:
            parts.append(f"{metrics[-1]['images_per_second']:.0f} images/s")
        if all("loss" in each for each in metrics):
            parts.append("loss " + " ".join(f"{each['loss']:.3f}" for each in metrics))
        if all("test_accuracy" in each for each in metrics):
            parts.append("test % " + " ".join(f"{100 * each['test_accuracy']:.1f}" for each in metrics))
        done = step - self._first_step
        if done > 0:
            parts.append(f"{clock(seconds / done * (self._last_step - step))} left")
        return "  ".join(parts)


class Live:
    """A thread that shows the run, read from its files. An error of the display never ends the run."""

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
        self._thread.join(JOIN_SECONDS)
        self._suspension.__exit__(None, None, None)

    def _run(self) -> None:
        with suppress(Exception):  # no display where the files cannot be read or the output takes nothing
            self._show(Follower(self._directory, self._last_step), self._stop.wait)


def draw(out: TextIO) -> Show:
    """The live table, redrawn in place."""

    def show(run: Follower, wait: Wait) -> None:
        with around_suspension(lambda: release(out)), Screen(out) as screen:
            while not wait(EVERY_SECONDS):
                run.refresh()
                screen.draw(lines(run, screen.width, screen.colours, screen.unicode))

    return show


def write_json(out: TextIO, every_seconds: float) -> Show:
    """One JSON object per line, every ``every_seconds``."""

    def show(run: Follower, wait: Wait) -> None:
        while not wait(every_seconds):
            run.refresh()
            print_line(snapshot(run), out)

    return show


def snapshot(run: Follower) -> str:
    """The state of ``run`` as one line of JSON."""
    rows = [{**asdict(row), "busy": row.busy} for row in run.ordered()]
    for row in rows:
        del row["waited"], row["began"]
    state = {"status": run.status.get("status"), "epoch": run.epoch, "step": run.step, "last_step": run.last_step}
    return json.dumps({"run": run.directory.name, **state, "seconds_left": run.seconds_left, "ranks": rows})
