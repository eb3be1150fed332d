"""The run directory: the files of a run, and at its end summary.json and a table."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bllpipe.config import Config, to_yaml
from bllpipe.errors import CheckpointError
from bllpipe.messages import Store
from bllpipe.topology import Topology
from bllpipe.training.run_schedule import RunSchedule
from bllpipe.utils.console import percent, warn
from bllpipe.utils.files import IfUnwritable, WritePolicy, append_line, atomic_write, json_object, read_record, writing
from bllpipe.utils.tensors import state_sha256
from bllpipe.version import __version__


class RunDirectory:
    """Paths and writers of the files of one run. Raises OutputError when one cannot be written; with
    ``log.if_unwritable: go_on`` metrics and spans are left out instead."""

    def __init__(self, path: Path, if_unwritable: IfUnwritable = "fail") -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.replicas = path / "replicas.jsonl"
        self.targets = path / "prometheus.json"
        self._metrics_log, self._spans_log = (
            WritePolicy(if_unwritable, what, "log.if_unwritable", warn) for what in ("metrics", "spans")
        )

    def begin(self, config: Config, first_step: int, tests_again: bool = False) -> None:
        """Writes config.yaml and env.json, and removes the metrics of all steps that will be repeated; with
        ``tests_again`` those of the test after ``first_step`` too."""
        with writing("the run's files", self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path / "config.yaml", to_yaml(config))
            atomic_write(self.path / "env.json", json.dumps(environment(), indent=1) + "\n")
            self.targets.unlink(missing_ok=True)  # of an earlier start
            for file in filter(Path.is_file, (self.metrics, self.replicas)):
                lines = file.read_text(errors="replace").splitlines(keepends=True)
                kept = [line for line in lines if first_step and _stays(line, first_step, tests_again)]
                atomic_write(file, "".join(kept))

    def add_resume(self, checkpoint: str, step: int, changes: Mapping[str, Any]) -> None:
        """Appends to resumes.jsonl: the run resumes after ``step``, with settings that differ from the checkpoint."""
        record = {"time": time.time(), "checkpoint": checkpoint, "step": step, "changes": changes}
        with writing("what is resumed", self.path / "resumes.jsonl"):
            append_line(self.path / "resumes.jsonl", json.dumps(record))

    def add_metrics(self, record: Mapping[str, Any], of_replica: bool = False) -> None:
        """Appends one line to metrics.jsonl; ``of_replica`` to replicas.jsonl, which has the times of all replicas of a
        block but the first."""
        file = self.replicas if of_replica else self.metrics

        def append() -> None:
            with writing("metrics", file):
                append_line(file, json.dumps(record))

        self._metrics_log.attempt(append)

    def write_spans(self, name: str, text: str) -> None:
        """Writes spans/NAME."""
        path = self.path / "spans" / name

        def write() -> None:
            with writing("spans", path):
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(path, text)

        self._spans_log.attempt(write)

    def write_status(self, status: str, **details: Any) -> None:
        """status.json: ``running``, ``completed``, ``preempted`` or ``failed``, with step, rank and reason."""
        self._write_json("the status", "status.json", {"status": status, "time": time.time(), **details})

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self._write_json("the summary", "summary.json", summary)

    def _write_json(self, what: str, name: str, record: Mapping[str, Any]) -> None:
        with writing(what, self.path / name):
            atomic_write(self.path / name, json.dumps(record, indent=1) + "\n")

    def read_status(self) -> dict[str, Any]:
        """The object in status.json; empty if it cannot be read."""
        try:
            return json_object((self.path / "status.json").read_bytes())
        except OSError:
            return {}

    def write_targets(self, groups: Sequence[Mapping[str, Any]], copy: Path | None = None) -> None:
        """prometheus.json: the addresses of the ranks' metrics, for the file_sd of Prometheus. Raises OSError."""
        for path in filter(None, (self.targets, copy)):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, json.dumps(groups, indent=1) + "\n")

    def read_targets(self) -> list[dict[str, Any]]:
        """The groups that ``write_targets`` wrote; empty for anything else."""
        try:
            found = json.loads(self.targets.read_bytes())
        except (OSError, ValueError):
            return []
        return found if isinstance(found, list) else []

    def has_ended(self, step: int) -> bool:
        """Whether summary.json and status.json are those of a run that ended without a failure after ``step`` steps."""
        try:
            summary, status = (read_record(self.path / f"{name}.json")[0] for name in ("summary", "status"))
        except CheckpointError:
            return False
        return summary.get("steps") == step and status.get("status") in ("completed", "preempted")


def post_directory(job_store: Store, path: Path) -> None:
    """Posts the run directory of the job in the store; its name may hold bytes that are not UTF-8."""
    job_store.set("directory", os.fsencode(path.absolute()))  # type: ignore[arg-type]  # torch's stores take bytes too


def posted_directory(job_store: Store) -> Path | None:
    """The directory that ``post_directory`` posted; None before that."""
    return Path(os.fsdecode(job_store.get("directory"))) if job_store.check(["directory"]) else None


def _stays(line: str, first_step: int, tests_again: bool) -> bool:
    """Whether it is a complete line of metrics of a step that will not be repeated."""
    try:
        record = json.loads(line)
        is_last_test = record["step"] == first_step and record.get("phase") == "evaluate"
        return line.endswith("\n") and record["step"] <= first_step and not (is_last_test and tests_again)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return False


def environment() -> dict[str, Any]:
    """env.json: versions, devices and the git revision."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "bllpipe": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "git": _git_revision(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git_revision() -> str | None:
    """The commit of the source tree, ``+changes`` behind it if it was edited; None when it is no checkout."""
    source = Path(__file__).parents[1]
    command = ["git", "-C", str(source), "describe", "--always", "--dirty=+changes", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def summarise(
    config: Config,
    layout: Topology,
    reports: Sequence[Mapping[str, Any]],
    schedule: RunSchedule,
    seconds: float,
) -> dict[str, Any]:
    """summary.json. Accuracies are fractions of the test set, ``busy`` fractions of the training time; ``waiting``
    seconds and ``sent_bytes`` bytes of the training, by edge; ``cpu_seconds`` those of all threads, tests included.
    Lists go by rank, feedback ranks last, but ``block_accuracy`` goes by the tested ranks; of a run without a test
    it is empty, and ``test_accuracy`` null. ``state_sha256`` is that of one replica of every block.
    ``ensemble_accuracy``, of all heads together, is only there with ``evaluate.ensemble``."""
    tested = [reports[rank] for rank in layout.tested_ranks]
    accuracies = [report["accuracy"] for report in tested]
    ensemble = {"ensemble_accuracy": tested[-1]["ensemble_accuracy"]} if config.evaluate.ensemble else {}
    return {
        "method": config.method,
        "engine": config.engine,
        "world_size": len(reports),
        "steps": schedule.last_step,
        "epochs": schedule.last_step / schedule.steps_per_epoch,
        "test_accuracy": accuracies[-1],
        "block_accuracy": [] if all(accuracy is None for accuracy in accuracies) else accuracies,
        **ensemble,
        "tested_ranks": list(layout.tested_ranks),
        "images_per_second": tested[-1]["images_per_second"],
        "seconds": seconds,
        "roles": [report["role"] for report in reports],
        "busy": [report["busy"] for report in reports],
        "waiting": [report["waiting"] for report in reports],
        "sent_bytes": [report["sent_bytes"] for report in reports],
        "cpu_seconds": [report["cpu_seconds"] for report in reports],
        "peak_memory_bytes": [report["peak_memory_bytes"] for report in reports],
        "parameters": [report["parameters"] for report in reports],
        "state_sha256": state_sha256([reports[rank]["digest"] for rank in layout.digest_ranks]),
    }


def table(summary: Mapping[str, Any]) -> str:
    """The summary as a table with a row for each rank, and the results below."""
    wide = max(9, *map(len, summary["roles"]))
    rows = [f"{'rank':>4}  {'role':<{wide}} {'test accuracy':>13} {'busy':>6} {'parameters':>11} {'peak memory':>12}"]
    accuracies = dict(zip(summary["tested_ranks"], summary["block_accuracy"], strict=False))
    for rank, role in enumerate(summary["roles"]):
        rows.append(
            f"{rank:>4}  {role:<{wide}} {percent(accuracies.get(rank)):>13} {percent(summary['busy'][rank]):>6} "
            f"{summary['parameters'][rank]:>11,} {summary['peak_memory_bytes'][rank] / 2**20:>8.0f} MiB"
        )
    if "ensemble_accuracy" in summary:
        rows.append(f"all heads together {percent(summary['ensemble_accuracy']):>10}")
    return "\n".join([*rows, outcome(summary), f"state_sha256 {summary['state_sha256']}"])


def outcome(summary: Mapping[str, Any]) -> str:
    """The results in one line."""
    rate, accuracy, steps = summary["images_per_second"], summary["test_accuracy"], f"{summary['steps']} steps"
    return (
        (f"{steps} without a test " if accuracy is None else f"test accuracy {percent(accuracy)} after {steps} ")
        + f"({summary['epochs']:.1f} epochs) in {summary['seconds']:.1f} s; "
        + (f"{rate:.0f} images/s in steady state" if rate else "it ended before its rate was steady")
    )
