"""The scripts for GPUs, rehearsed on a CPU from the first line to the last."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks.jobs import REPOSITORY

pytestmark = pytest.mark.ranks


def rehearse(script: str, folder: Path, *words: str) -> str:
    """What the script prints."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # its python is ours
    done = subprocess.run(
        [REPOSITORY / "benchmarks" / script, str(folder), *words, "--device", "cpu", "--quick"],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_one_gpu(tmp_path: Path) -> None:
    text = rehearse(
        "gpu.sh", tmp_path, "--models", "resnet18", "--batches", "8", "--variants", "bp eager", "bll streams"
    )
    assert "these figures say nothing of a GPU" in text and "done; tests passed" in text
    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert [each["variant"] for each in results] == ["bp eager", "bll streams"]


def test_several_gpus(tmp_path: Path) -> None:
    assert "these figures say nothing of GPUs" in rehearse("multi_gpu.sh", tmp_path, "2")
    engines = [each["engine"] for each in json.loads((tmp_path / "multi-gpu.json").read_text())["results"]]
    assert engines == ["bll", "ddp"]
