"""The progress line: one a second on a terminal, plain lines every so often otherwise."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

from bllpipe.ports import Store


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
        self._terminal = moves and out.isatty()
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
            self._out.write("\n")

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            figures = self._figures()
            if figures:
                self._print(self.line(figures, time.monotonic() - self._started))

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

    def _print(self, line: str) -> None:
        with suppress(OSError):  # a log on a full disk
            self._out.write(f"\r\x1b[2K{line}" if self._terminal else f"{line}\n")
            self._out.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
