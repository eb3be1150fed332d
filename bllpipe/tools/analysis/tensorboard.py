"""Runs as event files that TensorBoard shows: a folder a run, in it one for every block, stage, replica and lane.

Every number of metrics.jsonl is a scalar by training step: ``train/loss``, ``test/accuracy``, ``waiting/alpha 0->1``
(in seconds since the start), and so on. Config and machine are texts of the run's own folder, and hyperparameters.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
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
            _write(run, scalars(path / "metrics.jsonl"), folder / path.resolve().name)
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"--tensorboard {folder} and the run {path} make a path that is not UTF-8, which TensorBoard does not "
                f"take; rename the run or name another --tensorboard"
            ) from error
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written ({error.strerror}); name another --tensorboard") from error


def scalars(metrics: Path) -> Iterator[Scalar]:
    """Every finite number of metrics.jsonl, in its order; damaged lines are left out."""
    if not metrics.is_file():
        return
    for text in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        line = json_object(text)
        phase, step, waiting = PHASES.get(str(line.get("phase"))), line.get("step"), line.get("waiting")
        if phase is None or not isinstance(step, int):
            continue
        place = f"rank {line.get('rank')}, {line.get('actor', line.get('role'))}"
        values = {f"{phase}/{name}": value for name, value in line.items() if name not in PLACE}
        values |= {f"waiting/{edge}": value for edge, value in waiting.items()} if isinstance(waiting, dict) else {}
        for tag, value in values.items():
            if (known := finite(value)) is not None:
                yield Scalar(place, tag, step, known)


def _write(run: ReportRun, curves: Iterable[Scalar], folder: Path) -> None:
    from torch.utils.tensorboard.summary import hparams

    by_place: dict[str, list[Scalar]] = {}
    for scalar in curves:
        by_place.setdefault(scalar.place, []).append(scalar)
    for place, values in by_place.items():
        with closing(_writer(folder / place)) as writer:
            for each in values:
                writer.add_scalar(each.tag, each.value, each.step)
    outcomes = {name: value for name in OUTCOMES if (value := finite(run.summary.get(name))) is not None}
    settings = {  # TensorBoard takes lists and None only as text
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)
        for key, value in run.config.items()
    }
    with closing(_writer(folder)) as writer:
        writer.add_text("config", _as_code(run.config), 0)
        writer.add_text("machine", _as_code(run.environment), 0)
        for summary in hparams(settings, outcomes):  # into this file: add_hparams begins another one
            writer.file_writer.add_summary(summary)
        for name, value in outcomes.items():
            writer.add_scalar(name, value, 0)


def _writer(folder: Path) -> Any:
    """A writer of torch's; what an earlier report left in ``folder`` is removed."""
    from torch.utils.tensorboard import SummaryWriter

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"events.out.tfevents.*{OURS}"):
        old.unlink()
    return SummaryWriter(str(folder), filename_suffix=OURS)  # type: ignore[no-untyped-call]  # torch has no types here


def _as_code(record: Mapping[str, Any]) -> str:
    """A record as Markdown that TensorBoard does not set: four spaces before every line."""
    return "\n".join(f"    {key}: {json.dumps(value, default=str)}" for key, value in record.items())
