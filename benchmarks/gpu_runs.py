"""One run of the GPU benchmark, in the process of a worker: its rates, its memory, its energy."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_cases import WARM_UP_LAPS, Case
from benchmarks.gpu_meters import EnergyMeter, kernel_share, kernels
from bllpipe.config import load_config
from bllpipe.engines import Options, engine
from bllpipe.learn.cuda_graphs import forget_compiled
from bllpipe.training.run_directory import environment
from bllpipe.utils.process import peak_memory_bytes

Lines = list[dict[str, Any]]  # of metrics.jsonl


def measure(case: Case) -> dict[str, Any]:
    """Images/s of a case's laps, memory, and watts where they can be read."""
    left_bytes = start_afresh()
    meter = EnergyMeter.of_gpu() if case.device == "cuda" else EnergyMeter(None)
    with tempfile.TemporaryDirectory() as folder, meter.sampling():
        lines = run(case.settings, case.steps, Path(folder) / "run")
    rates = slowest_rates(lines)
    seconds = case.laps * case.lap_steps * case.batch / median(rates)
    return {
        "rates": rates,
        "loss": last_loss(lines),
        "peak_memory_bytes": peak_memory_bytes(),
        "reserved_bytes": torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else None,
        "left_bytes": left_bytes,
        "watts": meter.watts(seconds),
    }


def time_without_kernel(case: Case) -> float | None:
    """The fraction of the time without a kernel, in the second half of a separate run under the profiler."""
    start_afresh()
    with tempfile.TemporaryDirectory() as folder, profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run(case.settings, case.steps, Path(folder) / "run")
        torch.cuda.synchronize()
    share = kernel_share(kernels(profiled.events() or []))
    return None if share is None else 1 - share


def start_afresh() -> int:
    """Frees what the previous run has left, its compiled code included; returns the bytes of tensors that remain.

    A run excludes its objects from garbage collection; after the run they are collected again."""
    forget_compiled()
    gc.unfreeze()
    gc.collect()
    if not torch.cuda.is_initialized():
        return 0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def run(settings: Sequence[str], steps: int, run_dir: Path) -> Lines:
    """Trains for ``steps`` steps; returns the lines of metrics.jsonl."""
    complete([*settings, f"steps={steps}"], run_dir)
    return read_lines(run_dir)


def complete(settings: Sequence[str], run_dir: Path) -> dict[str, Any]:
    """Runs to the end without output; returns the summary. Raises RuntimeError if a signal ended the run early."""
    config = load_config(None, list(settings))
    with contextlib.redirect_stdout(io.StringIO()):
        code = engine(config.engine)(config, Options(run_dir=str(run_dir), output="quiet"))
    if code:
        raise RuntimeError(f"expected the run in {run_dir} to end with exit code 0, got {code}: a signal ended it")
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


def read_lines(run_dir: Path) -> Lines:
    """The lines of metrics.jsonl, without one that is still being written."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def slowest_rates(lines: Lines) -> list[float]:
    """Images/s of every lap that counts: those of the block whose laps are slowest."""
    laps: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        if line["phase"] == "train" and line["actor"].startswith("block"):
            laps[line["actor"]].append(line["images_per_second"])
    return min((rates[WARM_UP_LAPS:] for rates in laps.values()), key=median)


def last_loss(lines: Lines) -> float | None:
    """That of the last block in its last line."""
    trained = [line for line in lines if line["phase"] == "train" and "loss" in line]
    return max(trained, key=lambda line: (line["step"], line["actor"]))["loss"] if trained else None


def surroundings() -> dict[str, Any]:
    """Versions and devices, which only a process that may use the GPU can tell."""
    found = dict(environment())
    found["cuda"] = torch.version.cuda
    found["cudnn"] = torch.backends.cudnn.version()
    if torch.cuda.is_available():
        found["gpu_memory_bytes"] = torch.cuda.get_device_properties(0).total_memory
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(0)))
    return found
