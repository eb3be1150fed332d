"""Predictions for all numbers of GPUs of a cluster: layouts, played with and without jitter, goodput and price.

Of the layouts of an engine that are best by an estimate, the fastest one is chosen in a short simulation without
jitter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

import numpy as np
from numpy.random import Generator

from bllpipe.models.partition import UnitCost, local_seconds, stage_seconds
from bllpipe.tools.planning.cluster.clocks import (
    BlockClock,
    EdgeTimes,
    simulate_data_parallel,
    simulate_local,
    step_seconds,
)
from bllpipe.tools.planning.cluster.description import Floats
from bllpipe.tools.planning.cluster.failures import goodput
from bllpipe.tools.planning.cluster.layouts import (
    ClusterInputs,
    Layout,
    fits_data_parallel,
    local_layouts,
    pipeline_layouts,
)
from bllpipe.tools.planning.cluster.sums import sum_seconds
from bllpipe.tools.planning.cluster.synchronous import PROGRAMS, StageClock, simulate_pipelines
from bllpipe.tools.planning.predict import BYTES_OF_A_GRADIENT
from bllpipe.topology import num_feedback_ranks

ENGINES = ("bll", *PROGRAMS, "ddp")
BUCKET_BYTES = 25 * 2**20  # of gradients, which DistributedDataParallel sums up together
CANDIDATES = 4  # layouts that are tried in a short simulation
SHORT_STEPS = 6


@dataclass(frozen=True)
class ClusterPrediction:
    """One engine on so many GPUs. ``of_ideal`` is the rate over that of as many single devices; ``jitter_costs`` the
    share of the rate that is lost by jitter; ``goodput`` the share of the time in which steps are done that are not
    lost, with percentiles; rates are before, seconds and price of an epoch after goodput."""

    engine: str
    num_gpus: int
    batch_size: int
    cut: tuple[int, ...]
    replicas: tuple[int, ...]
    parts: int
    placement: str
    step_seconds: float
    images_per_second: float
    of_ideal: float
    jitter_costs: float
    goodput: float
    goodput_low: float
    goodput_high: float
    checkpoint_every_seconds: float | None
    seconds_per_epoch: float
    price_per_epoch: float


def predict_cluster(
    inputs: ClusterInputs, images_per_epoch: int, advance: Callable[[int], None] = lambda number: None
) -> list[ClusterPrediction]:
    """All engines for all numbers of GPUs, without those that fit none; ``advance`` is told each number."""
    found = []
    for number in inputs.cluster.gpus:
        for engine in ENGINES:
            layout = best_of(inputs, engine, number)
            if layout is not None:
                found.append(predict_layout(inputs, layout, images_per_epoch))
        advance(number)
    return found


def best_of(inputs: ClusterInputs, engine: str, num_gpus: int) -> Layout | None:
    """The fastest layout of an engine; None if there is none."""
    if engine == "ddp":
        return Layout("ddp", (), (1,), 1, num_gpus) if fits_data_parallel(inputs) else None
    layouts = local_layouts(inputs, num_gpus) if engine == "bll" else pipeline_layouts(inputs, engine, num_gpus)
    tried = [layout for _, layout in layouts[:CANDIDATES]]
    return min(tried, key=lambda layout: simulate(inputs, layout, SHORT_STEPS, 0.0), default=None)


def predict_layout(inputs: ClusterInputs, layout: Layout, images_per_epoch: int) -> ClusterPrediction:
    cluster, number = inputs.cluster, layout.num_gpus
    even = simulate(inputs, layout, cluster.steps, 0.0)
    step = simulate(inputs, layout, cluster.steps, cluster.jitter) if cluster.jitter else even
    batch_size = cluster.batch_per_gpu * number
    rate, network = batch_size / step, inputs.network
    single = network.batch_size / network.single_seconds * cluster.device.speed
    nodes = -(-number // cluster.gpus_per_node)
    good = goodput(cluster.failures, nodes, _random(cluster.seed, "failures", number))
    seconds = images_per_epoch / rate / good.mean if good.mean else inf
    return ClusterPrediction(
        engine=layout.engine,
        num_gpus=number,
        batch_size=batch_size,
        cut=layout.cut,
        replicas=tuple(each * layout.num_pipelines for each in layout.replicas),
        parts=layout.parts,
        placement=layout.placement,
        step_seconds=step,
        images_per_second=rate,
        of_ideal=rate / (single * number),
        jitter_costs=1 - even / step,
        goodput=good.mean,
        goodput_low=good.low,
        goodput_high=good.high,
        checkpoint_every_seconds=None if good.interval == inf else good.interval,
        seconds_per_epoch=seconds,
        price_per_epoch=seconds / 3600 * number * cluster.price_per_gpu_hour if cluster.price_per_gpu_hour else 0.0,
    )


def simulate(inputs: ClusterInputs, layout: Layout, steps: int, jitter: float) -> float:
    """Seconds of a step in steady state."""
    random = _random(inputs.cluster.seed, layout.engine, layout.num_gpus)
    if layout.engine == "bll":
        return step_seconds(_simulate_local(inputs, layout, steps, jitter, random))
    if layout.engine == "ddp":
        return step_seconds(_simulate_data_parallel(inputs, layout, steps, jitter, random))
    return step_seconds(_simulate_pipelines(inputs, layout, steps, jitter, random))


def _simulate_local(inputs: ClusterInputs, layout: Layout, steps: int, jitter: float, random: Generator) -> Floats:
    cluster, overhead = inputs.cluster, inputs.network.overhead
    units = inputs.units_of(cluster.batch_per_gpu * sum(layout.replicas) / layout.parts)
    blocks = []
    alpha: dict[tuple[int, int, int], tuple[Floats | float, Floats | float]] = {}
    feedback: dict[tuple[int, int], Floats | float] = {}
    bounds = list(pairwise([0, *layout.cut, len(units)]))
    places = [layout.places(number) for number in range(len(bounds))]
    for number, (first, end) in enumerate(bounds):
        forward, update = (sum(getattr(unit, name) for unit in units[first:end]) for name in ("forward", "update"))
        learn = local_seconds(units, first, end) - forward - update
        total = sum_seconds(inputs.sum_ways(places[number].reshape(-1), local=True), _gradient_bytes(units[first:end]))
        blocks.append(BlockClock(layout.replicas[number], forward + overhead, learn + overhead, update, total))
        for replica in range(layout.replicas[number]):
            own = places[number][:, replica]
            feedback[number, replica] = cluster.latencies(own, np.zeros_like(own))  # the feedback is on the first node
            for other in range(layout.replicas[number + 1] if number + 1 < len(bounds) else 0):
                theirs = places[number + 1][:, other]
                transfers = cluster.transfers(own, theirs, units[end - 1].output_bytes)
                alpha[number, replica, other] = cluster.latencies(own, theirs), transfers
    feedback_ranks = inputs.feedback_ranks or num_feedback_ranks(layout.num_gpus, len(blocks))
    message = cluster.feedback_message_us / 1e6 * len(blocks) / feedback_ranks
    times = EdgeTimes(
        alpha,
        feedback,
        cluster.handshake,
        inputs.ring,
        inputs.in_flight,
        cluster.posted_receives or inputs.ring,
        inputs.lag,
        message,
    )
    return simulate_local(blocks, times, layout.num_pipelines, layout.parts, steps, jitter, random)


def _simulate_pipelines(inputs: ClusterInputs, layout: Layout, steps: int, jitter: float, random: Generator) -> Floats:
    cluster, overhead = inputs.cluster, inputs.network.overhead
    num_stages, microbatches = len(layout.replicas), layout.parts
    units = inputs.units_of(cluster.batch_per_gpu * num_stages / microbatches)
    splits = layout.engine == "zero-bubble"
    stages = []
    for number, (first, end) in enumerate(pairwise([0, *layout.cut, len(units)])):
        work, own = stage_seconds(units, first, end), layout.places(number)[:, 0]
        backward = work.backward_of_input if splits else work.backward
        seconds = {
            "F": work.forward + overhead,
            "B": backward + overhead,
            "W": work.backward - backward + overhead * splits,
            "U": work.update,
        }
        total = sum_seconds(inputs.sum_ways(own, local=False), _gradient_bytes(units[first:end]))
        hidden = min(total, work.backward)  # by the backward pass of the last microbatch
        latency: Floats | float = 0.0
        transfer: Floats | float = 0.0
        if end < len(units):
            theirs = layout.places(number + 1)[:, 0]
            latency = cluster.latencies(own, theirs)
            transfer = cluster.transfers(own, theirs, units[end - 1].output_bytes)
        stages.append(StageClock(seconds, total - hidden, latency, transfer))
    program = PROGRAMS[layout.engine]
    return simulate_pipelines(
        stages, program, microbatches, layout.num_pipelines, steps, cluster.handshake, jitter, random
    )


def _simulate_data_parallel(
    inputs: ClusterInputs, layout: Layout, steps: int, jitter: float, random: Generator
) -> Floats:
    units = inputs.units_of(inputs.cluster.batch_per_gpu)
    work, num_bytes = stage_seconds(units, 0, len(units)), _gradient_bytes(units)
    ways = inputs.sum_ways(layout.places(0).reshape(-1), local=False)
    last = min(num_bytes, BUCKET_BYTES)
    exposed = sum_seconds(ways, last)
    hidden = sum_seconds(ways, num_bytes - last) if num_bytes > last else 0.0
    overhead = inputs.network.overhead
    return simulate_data_parallel(
        work.forward + overhead,
        work.backward + overhead,
        work.update,
        hidden,
        exposed,
        layout.num_pipelines,
        steps,
        jitter,
        random,
    )


def _gradient_bytes(units: Sequence[UnitCost]) -> float:
    return BYTES_OF_A_GRADIENT * sum(unit.parameters for unit in units)


def _random(seed: int, what: str, number: int) -> Generator:
    return np.random.default_rng([seed, number, *what.encode()])
