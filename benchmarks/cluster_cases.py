"""The cases of benchmarks.cluster: settings of their runs, and what bllpipe plan --cluster predicts for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.throughput_cases import EMULATED, FORWARD_SHARE
from bllpipe.models.partition import Link, UnitCost
from bllpipe.tools.planning.cluster.description import Cluster, LinkClass
from bllpipe.tools.planning.cluster.layouts import ClusterInputs, Layout
from bllpipe.tools.planning.cluster.predictions import simulate
from bllpipe.tools.planning.predict import PredictionInputs

BATCH = 32
ENGINES = ("bll", "1f1b", "ddp")
BALLAST = 60_000  # numbers of a stage, to sum up
CHANNELS, SIDE = 16, 8  # of a message
TEACHER = ("1f1b", 4, "even", "none")
PRECISION = 1e-6  # seconds
SHARED_MEMORY = Link(2e9, 50e-6)  # what the loopback interface is taken for: nothing, next to T


@dataclass(frozen=True)
class Links:
    """One-way delay in seconds, and bytes a second that a host may send; ``tc_rate`` is that for tc."""

    delay: float | None = None
    tc_rate: str | None = None
    bytes_per_second: float | None = None


LINKS = {"none": Links(), "50 ms": Links(0.05), "100 Mbit/s": Links(None, "100mbit", 12.5e6)}
# T of the stages, repeated, and jitter
WORKS: dict[str, tuple[Sequence[float], float]] = {
    "even": ((1.0,), 0.0),
    "[2,1,1,1]": ((2.0, 1.0, 1.0, 1.0), 0.0),
    "jitter 20 %": ((1.0,), 0.2),
}


@dataclass(frozen=True)
class Cell:
    """One case; ``seconds`` is T of a rank for a batch, forward and backward."""

    engine: str
    ranks: int
    work: str
    link: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.engine} p={self.ranks} {self.work}, {self.link}"

    @property
    def is_teacher(self) -> bool:
        return (self.engine, self.ranks, self.work, self.link) == TEACHER

    @property
    def jitter(self) -> float:
        return WORKS[self.work][1]

    @property
    def stage_seconds(self) -> list[float]:
        """T of every stage. A replica of ddp has all of them, the first of which does the work of all."""
        shape = WORKS[self.work][0]
        each = [self.seconds * shape[rank % len(shape)] for rank in range(self.ranks)]
        return [sum(each), *[0.0] * (self.ranks - 1)] if self.engine == "ddp" else each

    @property
    def microbatches(self) -> int:
        return max(8, self.ranks)

    @property
    def limit(self) -> float:
        """Images/s of the slowest rank alone."""
        seconds = self.stage_seconds
        return BATCH / (seconds[0] / self.ranks if self.engine == "ddp" else max(seconds))

    @property
    def settings(self) -> list[str]:
        seconds = self.stage_seconds
        args = {
            "forward": [T * FORWARD_SHARE for T in seconds],
            "backward": [T * (1 - FORWARD_SHARE) for T in seconds],
            "batch_size": BATCH,
            "channels": CHANNELS,
            "side": SIDE,
            "jitter": self.jitter,
            "ballast": BALLAST,
        }
        own = {
            "bll": [],
            "1f1b": ["method=bp", "engine=1f1b", f"pipeline.microbatches={self.microbatches}"],
            "ddp": ["method=bp", "engine=ddp"],
        }
        devices = ["model.name=benchmarks.cluster_devices:stages", f"model.args={json.dumps(args)}"]
        kept = [setting for setting in EMULATED if not setting.startswith("model.name=")]
        return [*kept, *devices, f"blocks={self.ranks}", *own[self.engine]]


def inputs_of(cell: Cell, overhead: float, posted: int, seed: int) -> ClusterInputs:
    """What the prediction of a cell starts from."""
    units = [_unit(T) for T in cell.stage_seconds]
    link = LINKS[cell.link]
    latency = SHARED_MEMORY.latency if link.delay is None else link.delay
    rate = link.bytes_per_second or SHARED_MEMORY.bytes_per_second
    between = LinkClass(latency_us=latency * 1e6, gigabytes_per_second=rate / 1e9)
    cluster = Cluster(
        gpus=[cell.ranks],
        gpus_per_node=1,
        within_node=between,
        between_nodes=between,
        batch_per_gpu=BATCH // cell.ranks,
        all_reduce="ring",
        posted_receives=posted,
        seed=seed,
    )
    return ClusterInputs(cluster, PredictionInputs(units, BATCH, Link(), overhead))


def layout_of(cell: Cell) -> Layout:
    if cell.engine == "ddp":
        return Layout("ddp", (), (1,), 1, cell.ranks)
    parts = 1 if cell.engine == "bll" else cell.microbatches
    return Layout(cell.engine, tuple(range(1, cell.ranks)), (1,) * cell.ranks, parts, 1)


def predicted_step(cell: Cell, overhead: float, posted: int, steps: int, seed: int = 0) -> float:
    """Seconds of a step in steady state, over as many steps as a run has."""
    return simulate(inputs_of(cell, overhead, posted, seed), layout_of(cell), max(steps, 10), cell.jitter)


def taught_overhead(teacher: Cell, measured_step: float, posted: int) -> float:
    """The overhead of a pass, in seconds, with which the step of this case is as measured; by bisection."""
    low, high = 0.0, measured_step
    while high - low > PRECISION:
        middle = (low + high) / 2
        if predicted_step(teacher, middle, posted, 10) < measured_step:
            low = middle
        else:
            high = middle
    return low


def _unit(seconds: float) -> UnitCost:
    forward, backward = seconds * FORWARD_SHARE, seconds * (1 - FORWARD_SHARE)
    message = BATCH * CHANNELS * SIDE * SIDE * 4
    return UnitCost(forward, backward, backward, backward / 2, 0.0, 0.0, BALLAST + 1, output_bytes=message)
