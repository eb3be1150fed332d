"""The run directory: what a run leaves behind for people and programs to read."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
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

    def begin(self, config: Config, first_step: int) -> None:
        """Writes config.yaml and env.json, and drops the metrics of steps that are about to be done again."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        _write_whole(self.path / "config.yaml", to_yaml(config))
        _write_whole(self.path / "env.json", json.dumps(environment(), indent=1) + "\n")
        self._keep_metrics_until(first_step)

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

    def read_status(self) -> dict[str, Any]:
        """What status.json says; nothing if there is none that can be read."""
        try:
            record = json.loads((self.path / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        _write_whole(self.path / "summary.json", json.dumps(summary, indent=1) + "\n")

    def _keep_metrics_until(self, first_step: int) -> None:
        if self.metrics.exists():
            lines = self.metrics.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first_step]
            _write_whole(self.metrics, "".join(kept) if first_step else "")


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
