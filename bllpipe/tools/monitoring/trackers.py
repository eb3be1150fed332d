"""The trackers of ``log.to``: TensorBoard, Weights & Biases and MLflow, each through its own library.

They get the lines of metrics.jsonl. A curve is called after its block, stage, replica or lane: ``block 2/train/loss``.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bllpipe.tools.analysis.report_data import finite
from bllpipe.tools.analysis.tensorboard import EventFiles, scalars_of
from bllpipe.tools.monitoring.tracking import FOLDER

PROJECT = "bllpipe"  # of Weights & Biases, and experiment of MLflow, unless the environment names another
MAX_METRICS = 500  # in one request; MLflow takes 1,000
MAX_PARAMETER = 500  # characters; older servers of MLflow take no more


@dataclass(frozen=True)
class TrackedRun:
    """A run that begins, or resumes after step ``start``. ``config`` has dotted keys; ``identity`` is what its tracker
    has called it before, if it has."""

    name: str
    directory: Path
    start: int
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    identity: str | None


class Tracker(Protocol):
    """Takes the lines of a run. Its constructor takes a TrackedRun, and imports the library."""

    identity: str  # by which a resumed run continues the same run of the tracker
    shows_again: bool  # whether it has dropped, after a resume, the steps that the run does again

    def log(self, lines: Sequence[Mapping[str, Any]]) -> None: ...

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """``status`` is that of status.json, or running if the run was killed; the summary is empty unless the run
        came to an end."""


class TensorBoard:
    """Event files in the run directory, so that ``tensorboard --logdir runs`` shows all runs."""

    shows_again = True

    def __init__(self, run: TrackedRun) -> None:
        self._config, self.identity = run.config, "tensorboard"
        self._files = EventFiles(run.directory / self.identity, run.start if run.identity else 0)
        self._files.describe(run.config, run.environment)
        self._files.flush()

    def log(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in lines:
            for scalar in scalars_of(line):
                self._files.add(scalar)
        self._files.flush()

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        self._files.conclude(self._config, summary)
        self._files.close()


class WeightsAndBiases:
    """A run of W&B, online or offline as its own settings say; its files are in the run directory."""

    shows_again = False

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self.identity = run.identity or uuid.uuid4().hex[:8]
        project = wandb.setup().settings.project or PROJECT
        offline = wandb.setup().settings.mode == "offline"  # where only its identity joins the two parts
        settings = wandb.Settings(console="off", silent=True)
        self._run = wandb.init(
            project=project,
            id=self.identity,
            resume=None if offline else "allow",
            name=run.name,
            dir=str(run.directory / FOLDER),
            config={**run.config, "machine": dict(run.environment)},
            allow_val_change=True,
            settings=settings,
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in lines:
            values = {f"{place(line)}/{scalar.tag}": scalar.value for scalar in scalars_of(line)}
            if values:
                self._run.log({"step": line["step"], **values})

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        self._run.summary.update({"status": status, **summary})
        self._run.finish(exit_code=0 if summary else 1)


class MLflow:
    """A run of MLflow, in the store that its own settings name."""

    shows_again = False

    def __init__(self, run: TrackedRun) -> None:
        import mlflow
        from mlflow import environment_variables as environment

        if not (environment.MLFLOW_EXPERIMENT_NAME.get() or environment.MLFLOW_EXPERIMENT_ID.get()):
            mlflow.set_experiment(PROJECT)
        started = mlflow.start_run(run_id=run.identity, run_name=run.name)
        self.identity, self._client = started.info.run_id, mlflow.MlflowClient()
        if run.identity is None:  # a parameter cannot be changed
            mlflow.log_params({key: parameter(value) for key, value in run.config.items()})
            mlflow.set_tags({f"machine.{key}": parameter(value) for key, value in run.environment.items()})

    def log(self, lines: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(metric_name(f"{place(line)}/{scalar.tag}"), scalar.value, now, scalar.step)
            for line in lines
            for scalar in scalars_of(line)
        ]
        self._pass(metrics)

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        import mlflow
        from mlflow.entities import Metric

        now, step = int(time.time() * 1000), int(summary.get("steps", 0))
        self._pass([Metric(metric_name(name), value, now, step) for name, value in numbers(summary)])
        if "state_sha256" in summary:
            self._client.set_tag(self.identity, "state_sha256", summary["state_sha256"])
        mlflow.end_run({"completed": "FINISHED", "failed": "FAILED"}.get(status, "KILLED"))

    def _pass(self, metrics: Sequence[Any]) -> None:
        for first in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(self.identity, metrics=metrics[first : first + MAX_METRICS])


def place(line: Mapping[str, Any]) -> str:
    """Whose line of metrics.jsonl it is: ``block 2``, whatever its replicas, ``stage 1``, ``replica 0`` or
    ``lane 3``."""
    is_local = str(line.get("role")).startswith(("block", "feedback"))
    return str(line.get("actor", line.get("role")) if is_local else line.get("role"))


def metric_name(name: str) -> str:
    """``name`` in the characters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("->", " to "))


def parameter(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value, default=str))[:MAX_PARAMETER]


def numbers(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The finite numbers in ``record`` and in its lists: ``block_accuracy/0``."""
    for name, value in record.items():
        for key, each in (
            ((f"{name}/{k}", one) for k, one in enumerate(value)) if isinstance(value, list) else ((name, value),)
        ):
            if (known := finite(each)) is not None:
                yield key, known


TRACKERS: Mapping[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
