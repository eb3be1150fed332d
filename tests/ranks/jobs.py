"""Real jobs for tests: started as a user starts them, with small models, and read back from their run directories."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bllpipe import launch

REPOSITORY = Path(__file__).parents[2]
SMALL = ("model.width=4", "data.batch_size=32", "log.every_steps=5")


def words(run_dir: Path | None, *settings: str, options: tuple[str, ...] = ()) -> list[str]:
    """Command-line words for a job with ``settings`` (key=value)."""
    overrides = [word for setting in settings for word in ("--set", setting)]
    return [*overrides, *(["--run-dir", str(run_dir)] if run_dir else []), *options]


def in_this_process(run_dir: Path, *settings: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """Runs a single-process engine here; its summary."""
    assert launch.main(words(run_dir, *settings, options=options)) == 0
    return summary(run_dir)


def torchrun(
    num_ranks: int, arguments: list[str], module: str = "bllpipe.launch", timeout: float = 120, **variables: str
) -> subprocess.CompletedProcess[str]:
    """``torchrun --nproc_per_node=num_ranks -m module arguments``."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    return _run([*command, "-m", module, *arguments], timeout, variables)


def alone(arguments: list[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """``python -m bllpipe.launch arguments``."""
    return _run([sys.executable, "-m", "bllpipe.launch", *arguments], timeout, {})


def summary(run_dir: Path) -> dict[str, Any]:
    return read_json(run_dir / "summary.json")


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def read_json(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def succeed(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """The finished process, or a failure that shows what it said."""
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def _run(command: list[str], timeout: float, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=REPOSITORY)
