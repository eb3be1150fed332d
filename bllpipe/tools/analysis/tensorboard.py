"""Runs as event files that TensorBoard shows: a folder a run, in it one for every block, stage, replica and lane.

Every number of metrics.jsonl is a scalar by training step: ``train/loss``, ``test/accuracy``, ``waiting/alpha 0->1``
(in seconds since the start), and so on. Config and machine are texts of the run's own folder, and hyperparameters.
``bllpipe report`` writes finished runs, and ``log.to: [tensorboard]`` a run while it trains.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bllpipe.errors import ConfigError
from bllpipe.tools.analysis.report_data import ReportRun, finite, read_runs
from bllpipe.utils.files import json_object

OURS = ".bllpipe"  # the end of our files' names
PHASES = {"train": "train", "evaluate": "test"}
PLACE = ("phase", "step", "epoch", "rank", "role", "actor")
OUTCOMES = ("test_accuracy", "images_per_second", "seconds")


@dataclass(frozen=True)
class Scalar:
    """One value of a curve; ``place`` is whose it is, such as ``rank 2, block 2``."""

    place: str
    tag: str
    step: int
    value: float


def write_events(paths: Sequence[Path], folder: Path) -> None:
    """Writes the runs in ``paths`` to ``folder``, in place of what stands there of them.

    Raises ConfigError if TensorBoard is not installed, one of the paths holds no run, or nothing can be written.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "event files are written by the package tensorboard, which is not installed; "
            "use pip install 'bllpipe[tensorboard]', or leave out --tensorboard"
        )
    for path, run in zip(paths, read_runs(paths), strict=False):
        try:
            str(folder / path.resolve().name).encode()
            _write(run, path / "metrics.jsonl", folder / path.resolve().name)
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"--tensorboard {folder} and the run {path} make a path that is not UTF-8, which TensorBoard does not "
                f"take; rename the run or name another --tensorboard"
            ) from error
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written ({error.strerror}); name another --tensorboard") from error


def scalars(metrics: Path) -> Iterator[Scalar]:
    """Every finite number of metrics.jsonl, in its order; damaged lines are left out."""
    if metrics.is_file():
        for text in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            yield from scalars_of(json_object(text))


def scalars_of(line: Mapping[str, Any]) -> Iterator[Scalar]:
    """Every finite number of one line of metrics.jsonl; none if it is damaged."""
    phase, step, waiting = PHASES.get(str(line.get("phase"))), line.get("step"), line.get("waiting")
    if phase is None or not isinstance(step, int):
        return
    place = f"rank {line.get('rank')}, {line.get('actor', line.get('role'))}"
    values = {f"{phase}/{name}": value for name, value in line.items() if name not in PLACE}
    values |= {f"waiting/{edge}": value for edge, value in waiting.items()} if isinstance(waiting, dict) else {}
    for tag, value in values.items():
        if (known := finite(value)) is not None:
            yield Scalar(place, tag, step, known)


class EventFiles:
    """Writes the event files of one run to ``folder``. What an earlier run or report left there is removed; if the run
    resumes after step ``start``, it stays, but TensorBoard no longer shows its later steps."""

    def __init__(self, folder: Path, start: int = 0) -> None:
        self._folder, self._start = folder, start
        self._writers: dict[str, Any] = {}
        self._own = self._writer(folder)

    def describe(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Writes config, with dotted keys, and machine as texts."""
        self._own.add_text("config", _as_code(config), 0)
        self._own.add_text("machine", _as_code(environment), 0)

    def add(self, scalar: Scalar) -> None:
        if scalar.place not in self._writers:
            self._writers[scalar.place] = self._writer(self._folder / scalar.place)
        self._writers[scalar.place].add_scalar(scalar.tag, scalar.value, scalar.step)

    def conclude(self, config: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Writes the hyperparameters, with the outcomes in ``summary``, which may be empty."""
        from torch.utils.tensorboard.summary import hparams

        outcomes = {name: value for name in OUTCOMES if (value := finite(summary.get(name))) is not None}
        settings = {  # TensorBoard takes lists and None only as text
            key: value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)
            for key, value in config.items()
        }
        for record in hparams(settings, outcomes):  # into this file: add_hparams begins another one
            self._own.file_writer.add_summary(record)
        for name, value in outcomes.items():
            self._own.add_scalar(name, value, 0)

    def flush(self) -> None:
        for writer in (self._own, *self._writers.values()):
            writer.flush()

    def close(self) -> None:
        for writer in (self._own, *self._writers.values()):
            writer.close()

    def _writer(self, folder: Path) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        for old in () if self._start else folder.glob(f"events.out.tfevents.*{OURS}"):
            old.unlink()
        hidden_from = self._start + 1 if self._start else None
        return SummaryWriter(str(folder), purge_step=hidden_from, filename_suffix=OURS)  # type: ignore[no-untyped-call]  # torch has no types here


def _write(run: ReportRun, metrics: Path, folder: Path) -> None:
    files = EventFiles(folder)
    try:
        for scalar in scalars(metrics):
            files.add(scalar)
        files.describe(run.config, run.environment)
        files.conclude(run.config, run.summary)
    finally:
        files.close()


def _as_code(record: Mapping[str, Any]) -> str:
    """A record as Markdown that TensorBoard does not set: four spaces before every line."""
    return "\n".join(f"    {key}: {json.dumps(value, default=str)}" for key, value in record.items())
