"""The state of a run, read from its files alone: the latest metrics of every rank, and whether the run is healthy. No
process of the run takes part, so this works from another terminal, during a run and after it, and in a container's
health check.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bllpipe.config import Config
from bllpipe.config.loader import load_stored_config
from bllpipe.data.catalog import PUBLISHED
from bllpipe.training.run_schedule import RunSchedule
from bllpipe.utils.files import json_object

RUNS = Path("runs")
WITHIN_SECONDS = 900.0  # longer than backend.timeout_seconds, after which a run that hangs ends by itself


@dataclass
class Row:
    """The latest metrics of one block, of another replica of it (its times alone), or of one block's feedback loop.
    ``busy`` and ``waiting`` are fractions of the time between its last two lines in the files of the run."""

    rank: int
    role: str
    actor: str
    step: int = 0
    rate: float | None = None
    loss: float | None = None
    accuracy: float | None = None
    test_accuracy: float | None = None
    waiting: dict[str, float] = field(default_factory=dict)  # fraction of the time, by edge
    waited: dict[str, float] = field(default_factory=dict)  # seconds since the start of the process, by edge
    began: int = 0  # the step at which its process started or resumed

    @property
    def busy(self) -> float | None:
        return None if self.rate is None else max(0.0, 1 - sum(self.waiting.values()))

    def update(self, record: Mapping[str, Any], batch_size: int, began: int) -> None:
        """Adds one line of metrics.jsonl, from a process that started or resumed at step ``began``: the line counts the
        waiting of that process alone."""
        if record.get("phase") == "evaluate":
            self.test_accuracy = record.get("accuracy")
            return
        self.rank, self.role, self.began = record["rank"], record["role"], began
        if began >= self.step:
            self.step, self.waited = began, {}
        steps, self.step = record["step"] - self.step, record["step"]
        self.loss, self.accuracy = record.get("loss"), record.get("accuracy")
        self.rate, waited = record.get("images_per_second"), dict(record.get("waiting", {}))
        seconds = steps * batch_size / self.rate if self.rate else 0.0
        if seconds > 0:
            grown = {edge: total - self.waited.get(edge, 0.0) for edge, total in waited.items()}
            self.waiting = {edge: min(1.0, max(0.0, more) / seconds) for edge, more in grown.items()}
        self.waited = waited


class GrowingFile:
    """The lines of a file that were added since the last look. A line that is half written waits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.begin()

    def begin(self) -> None:
        """From now on reads from the start."""
        self._read, self._rest = 0, b""

    def is_shorter(self) -> bool:
        """Whether the file is shorter than what was read, as when a run is resumed."""
        with suppress(OSError):
            return self._path.stat().st_size < self._read
        return False

    def new_lines(self) -> list[bytes]:
        """Complete lines; none if the file cannot be read."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except OSError:
            return []
        self._read += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        return lines


class Follower:
    """Follows a run: every ``refresh`` reads what was added to the run directory since the last one."""

    def __init__(self, directory: Path, last_step: int | None = None) -> None:
        self.directory = directory
        self.config: Config = load_stored_config(str(directory / "config.yaml"))
        self.last_step = last_step or _last_step(self.config)
        self.rows: dict[str, Row] = {}
        self.status: dict[str, Any] = {}
        self.epoch = 0
        self.written = 0.0  # when the run last wrote to its files, in seconds since the epoch
        self._files = [GrowingFile(directory / name) for name in ("metrics.jsonl", "replicas.jsonl")]
        self._starts = [0]  # steps at which processes of this run started or resumed

    @property
    def step(self) -> int:
        """Training steps that all actors have done, by their last lines."""
        return min((row.step for row in self.rows.values()), default=int(self.status.get("step", 0)))

    @property
    def seconds_left(self) -> float | None:
        """At the rate of the slowest actor; None if unknown."""
        rates = [row.rate for row in self.rows.values() if row.rate]
        if self.last_step is None or not rates or self.status.get("status") != "running":
            return None
        return max(0, self.last_step - self.step) * self.config.data.batch_size / min(rates)

    def refresh(self) -> None:
        """Reads the new lines; reads all of them where the file has become shorter, as when a run is resumed."""
        self.status = json_object(self._text("status.json"))
        self.written = last_written(self.directory)
        lines = self._new_lines()  # before resumes.jsonl, so that it names the process of every line
        resumes = map(json_object, self._text("resumes.jsonl").splitlines())
        self._starts = [0, *(resume["step"] for resume in resumes if "step" in resume)]
        for line in lines:
            record = json_object(line)
            if {"actor", "rank", "role", "step"} <= record.keys():
                row = self.rows.setdefault(record["actor"], Row(record["rank"], record["role"], record["actor"]))
                began = max((step for step in self._starts if step < record["step"]), default=0)
                row.update(record, self.config.data.batch_size, began)
                self.epoch = max(self.epoch, int(record.get("epoch", 0)))
        newest = max((row.began for row in self.rows.values()), default=0)
        for actor, row in list(self.rows.items()):
            if row.began < newest and " replica " in actor:  # the run may have resumed with fewer replicas
                del self.rows[actor]

    def ordered(self) -> list[Row]:
        """The rows by rank, then by actor: a feedback rank has one per block."""
        return sorted(self.rows.values(), key=lambda row: (row.rank, row.actor))

    def _new_lines(self) -> list[bytes]:
        if any(file.is_shorter() for file in self._files):
            self.rows = {}
            for file in self._files:
                file.begin()
        return [line for file in self._files for line in file.new_lines()]

    def _text(self, name: str) -> bytes:
        try:
            return (self.directory / name).read_bytes()
        except OSError:
            return b""


def _last_step(config: Config) -> int | None:
    """The last step of the run, if the number of images is known without reading the data."""
    if config.data.name in PUBLISHED:
        return RunSchedule.of(config, PUBLISHED[config.data.name].num_train, 1).last_step
    if config.data.name == "synthetic":
        return RunSchedule.of(config, config.data.synthetic_images, 1).last_step
    return min(config.steps, config.stop_at or config.steps) if config.steps else None


@dataclass(frozen=True)
class Health:
    """Whether the run is healthy, and why, in one line."""

    is_healthy: bool
    reason: str


def newest(runs: Path) -> Path | None:
    """The most recently written run directory in ``runs``."""
    found = [path.parent for path in runs.glob("*/status.json")]
    return max(found, key=last_written, default=None)


def health_of(directory: Path, within: float) -> Health:
    """A run is healthy if it has completed, was stopped by a signal or a limit, or is running and has written to its
    metrics or checkpoints in the last ``within`` seconds. A run that was killed still has the status "running"."""
    try:
        status = json_object((directory / "status.json").read_bytes())
    except OSError:
        status = {}
    if not status:
        return Health(False, f"{directory} has no status.json: no run has started there")
    if status.get("status") != "running":
        step, reason = f", step {status['step']}" if "step" in status else "", first_reason(status)
        ended = f"{status.get('status')}{step}{reason and f': {reason}'}"
        return Health(status.get("status") in ("completed", "preempted"), f"{directory}: {ended}")
    seconds = time.time() - last_written(directory)
    return Health(seconds <= within, f"{directory}: running, last written {seconds:.0f} s ago")


def last_written(directory: Path) -> float:
    """When the run last wrote status, metrics or a checkpoint, in seconds since the epoch; 0 if never."""
    times = [0.0]
    for name in ("status.json", "metrics.jsonl", "checkpoints"):
        with suppress(OSError):
            times.append((directory / name).stat().st_mtime)
    return max(times)


def first_reason(status: Mapping[str, Any]) -> str:
    """The first line of the reason for which a run ended; empty without one."""
    return next(iter(str(status.get("reason") or "").strip().splitlines()), "")
