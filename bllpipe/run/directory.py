"""The run directory: what a run leaves behind for people and programs to read."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import bllpipe
from bllpipe.config import Config, to_yaml


class RunDirectory:
    """Paths and writers of one run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.targets = path / "prometheus.json"

    def begin(self, config: Config, first_step: int, tested: bool = True) -> None:
        """Writes config.yaml and env.json, and drops the metrics of what is about to be done again: later steps, and
        the test after this one unless it is ``tested``."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        _write_whole(self.path / "config.yaml", to_yaml(config))
        _write_whole(self.path / "env.json", json.dumps(environment(), indent=1) + "\n")
        self.targets.unlink(missing_ok=True)  # of those who were here before
        self._keep_metrics(lambda line: _is_before(line, first_step, tested))

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl in one write, as several ranks share the file."""
        descriptor = os.open(self.metrics, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(record) + "\n").encode())
        finally:
            os.close(descriptor)

    def write_status(self, status: str, **facts: Any) -> None:
        """status.json: ``running``, ``completed``, ``preempted`` or ``failed``, with step, rank and reason."""
        record = {"status": status, "time": time.time(), **facts}
        _write_whole(self.path / "status.json", json.dumps(record, indent=1) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        _write_whole(self.path / "summary.json", json.dumps(summary, indent=1) + "\n")

    def write_targets(self, groups: Sequence[Mapping[str, Any]], copy: Path | None = None) -> None:
        """prometheus.json: where the ranks tell their figures, as Prometheus' file_sd reads it."""
        for path in filter(None, (self.targets, copy)):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(path, json.dumps(groups, indent=1) + "\n")

    def read_targets(self) -> list[dict[str, Any]]:
        """What ``write_targets`` has written; empty if there is nothing, or something else."""
        try:
            found = json.loads(self.targets.read_text())
        except (OSError, ValueError):
            return []
        return found if isinstance(found, list) else []

    @property
    def is_summarised(self) -> bool:
        """Whether the run has come to an end of its own, for which it wrote a summary."""
        try:
            return json.loads((self.path / "status.json").read_text())["status"] in ("completed", "preempted")
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _keep_metrics(self, keep: Callable[[Mapping[str, Any]], bool]) -> None:
        if self.metrics.exists():
            lines = self.metrics.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and keep(json.loads(line))]
            _write_whole(self.metrics, "".join(kept))


def _is_before(line: Mapping[str, Any], step: int, tested: bool) -> bool:
    """Whether a line of the metrics is about what was done up to ``step``."""
    if line["step"] == step and line.get("phase") == "evaluate":
        return tested
    return 0 < int(line["step"]) <= step


def environment() -> dict[str, Any]:
    """Versions, devices and the state of the source: what a reader of the figures needs to know."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "bllpipe": bllpipe.__version__,
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
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git_revision() -> str | None:
    """The commit of the source tree, ``+changes`` behind it if it was edited; None when it is no checkout."""
    source = Path(bllpipe.__file__).parent
    command = ["git", "-C", str(source), "describe", "--always", "--dirty=+changes", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _write_whole(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)
