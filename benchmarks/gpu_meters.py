"""Measurements of a GPU run besides its time: operations, energy, and the fraction of the time with kernels."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.limit import block_alone
from bllpipe.config import Config

# Dense bf16 products with fp32 sums, operations per second, from the vendor's data sheets.
PEAKS = {
    "H200": 989e12,
    "GH200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10": 125e12,
}
SAMPLE_SECONDS = 0.05


def peak_of(name: str) -> float | None:
    """The bf16 peak of a GPU called ``name``; None for one that the table does not know."""
    return next((peak for known, peak in PEAKS.items() if known in name), None)


def operations_per_image(config: Config, batch: int = 2) -> float:
    """Of products and convolutions in one training step of all blocks, forward and backward, as torch counts them."""
    return sum(_operations(config, number, batch) for number in range(config.num_blocks)) / batch


def _operations(config: Config, number: int, batch: int) -> float:
    block, x, target = block_alone(number, config, batch)
    counter: Any = FlopCounterMode(display=False)  # it restarts from 0 whenever it is entered
    with counter:
        block.update(block.forward(x), target, 0)
    return float(counter.get_total_flops())


@dataclass
class EnergyMeter:
    """Energy of the GPU in joules over time, sampled during a run; empty where NVML is not installed."""

    read: Any
    samples: list[tuple[float, float]] = field(default_factory=list)

    @classmethod
    def of_gpu(cls, index: int = 0) -> EnergyMeter:
        """Of GPU ``index`` by NVML's own numbering."""
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except Exception:  # not installed, no driver or no permission: the energy is unknown
            return cls(None)
        return cls(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Samples until it is left."""
        over = threading.Event()
        thread = threading.Thread(target=self._sample, args=(over,), daemon=True)
        if self.read is not None:
            thread.start()
        try:
            yield
        finally:
            over.set()
            if self.read is not None:
                thread.join(timeout=5)

    def watts(self, seconds: float) -> float | None:
        """The largest mean over a stretch of ``seconds``, which is where the training was: before and behind it a GPU
        rests. None when there were no two samples so far apart."""
        found = [
            (last - first) / (ended - begun)
            for (begun, first), (ended, last) in combinations(self.samples, 2)
            if seconds <= ended - begun <= seconds + 2 * SAMPLE_SECONDS
        ]
        return max(found, default=None)

    def _sample(self, over: threading.Event) -> None:
        while not over.wait(SAMPLE_SECONDS):
            self.samples.append((time.perf_counter(), self.read()))


def kernel_share(intervals: Iterable[tuple[float, float]], last: float = 0.5) -> float | None:
    """The share of the time in which at least one of ``intervals`` (start, end) was under way, in the ``last`` part of
    them all; None without any. The rest is time without a kernel: between launches, and between the kernels of a graph.
    """
    ordered = sorted(intervals)
    if not ordered:
        return None
    end = max(stop for _, stop in ordered)
    start = end - last * (end - ordered[0][0])
    covered, reached = 0.0, start
    for begin, stop in ordered:
        covered += max(0.0, stop - max(begin, reached))
        reached = max(reached, stop)
    return covered / (end - start) if end > start else None


def kernels(events: Sequence[Any]) -> list[tuple[float, float]]:
    """When each kernel of a profile ran, in microseconds."""
    on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    return [(event.time_range.start, event.time_range.end) for event in on_gpu]
