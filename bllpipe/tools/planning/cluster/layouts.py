"""How an engine may be laid out on the GPUs of a cluster: pipelines, all alike, each with a cut and replicas.

PipeDream's dynamic programme (tools/planning/replicas.py) cuts the network for the GPUs of one pipeline and finds the
replicas of its blocks. A cluster holds as many such pipelines as fit, and sums gradients over all of them:

    placement: pipeline     GPU 0 1 2 3    pipeline 0: blocks 0 0 1 2     alpha stays in a node where it can
    placement: block        GPU 0 1 2 3    block 0 of pipelines 0 and 1   sums stay in a node where they can
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from math import inf

import numpy as np

from bllpipe.models.partition import COMPUTED, Cost, Link, UnitCost, best_cut, local_seconds, memory_bytes, stage_cost
from bllpipe.tools.planning.cluster.description import Cluster, Places
from bllpipe.tools.planning.cluster.sums import all_reduce_ways, direct_ways, sum_seconds
from bllpipe.tools.planning.predict import BYTES_OF_A_GRADIENT, PredictionInputs
from bllpipe.tools.planning.replicas import ReplicatedCost, best_layout, possible_shards

MOST_RANKS = 16  # of a pipeline, unless it has more blocks
PER_STAGE = (1, 2, 4)  # microbatches
BYTES_OF_A_PARAMETER = 12  # with its gradient and the optimiser's state
PLACEMENTS = ("pipeline", "block")


@dataclass(frozen=True)
class Layout:
    """One engine on ``num_pipelines`` equal pipelines. ``replicas`` are those of a pipeline, for every block or stage;
    ``parts`` the shards or microbatches of a pipeline's batch."""

    engine: str
    cut: tuple[int, ...]
    replicas: tuple[int, ...]
    parts: int
    num_pipelines: int
    placement: str = "pipeline"

    @property
    def num_gpus(self) -> int:
        return sum(self.replicas) * self.num_pipelines

    def places(self, block: int) -> Places:
        """The GPUs of a block, [pipelines, replicas]."""
        before = list(accumulate(self.replicas, initial=0))
        pipelines, replicas = np.arange(self.num_pipelines)[:, None], np.arange(self.replicas[block])[None, :]
        if self.placement == "pipeline":
            return pipelines * before[-1] + before[block] + replicas
        return self.num_pipelines * before[block] + pipelines * self.replicas[block] + replicas


@dataclass(frozen=True)
class ClusterInputs:
    """What all predictions start from: the cluster, the measured network, and settings of the run. ``ordered``: sums
    are bllpipe's, in a fixed order, not those of the backend."""

    cluster: Cluster
    network: PredictionInputs
    num_blocks: tuple[int, ...] = (4,)
    ring: int = 2
    in_flight: int = 2
    lag: int = 1
    ordered: bool = True
    feedback_ranks: int | None = None

    def units_of(self, images: float) -> list[UnitCost]:
        """The units for so many images at once, on a device of the cluster: between two measured numbers of images
        interpolated, outside of all in proportion to the nearest one."""
        network, device = self.network, self.cluster.device
        known = {**network.parts, network.batch_size: network.units}
        sizes = sorted(known)
        nearest = min(max(images, sizes[0]), sizes[-1])
        scale = images / nearest / device.speed / network.contention
        found = []
        for at, whole in enumerate(network.units):
            seconds = {
                name: scale * float(np.interp(nearest, sizes, [getattr(known[size][at], name) for size in sizes]))
                for name in COMPUTED
            }
            unit = UnitCost(
                **seconds,
                update=whole.update / device.speed / network.contention,
                parameters=whole.parameters,
                output_bytes=round(whole.output_bytes * images / network.batch_size),
                memory_bytes=self._memory(whole, images),
                head_memory_bytes=round(whole.head_memory_bytes * images / network.batch_size),
            )
            found.append(unit)
        return found

    def _memory(self, unit: UnitCost, images: float) -> int:
        fixed = min(unit.memory_bytes, BYTES_OF_A_PARAMETER * unit.parameters)
        return round(fixed + (unit.memory_bytes - fixed) * images / self.network.batch_size)

    def sum_ways(self, places: Places, local: bool) -> list[Link]:
        """Of the gradients of replicas on these GPUs."""
        if local and self.ordered:
            return direct_ways(self.cluster, places)
        return all_reduce_ways(self.cluster, places)


def local_layouts(inputs: ClusterInputs, num_gpus: int) -> list[tuple[float, Layout]]:
    """The best layout of block-local learning for every size of a pipeline and number of shards, with the seconds of
    its slowest block; nothing where none fits."""
    cluster, found = inputs.cluster, []
    for num_blocks in inputs.num_blocks:
        for size in _sizes(num_gpus, num_blocks):
            for shards in possible_shards(cluster.batch_per_gpu * size, size + 1):
                cost = _local_cost(inputs, size, num_gpus // size, shards)
                layout = best_layout(len(inputs.network.units), size, shards, cost, num_blocks)
                if layout is not None and sum(layout[1]) == size:  # else a smaller size has it
                    cut, replicas = layout
                    bounds = pairwise([0, *cut, len(inputs.network.units)])
                    slowest = max(cost(*block, number) for block, number in zip(bounds, replicas, strict=True))
                    found += [
                        (slowest, Layout("bll", cut, replicas, shards, num_gpus // size, placement))
                        for placement in _placements(cluster)
                    ]
    return sorted(found, key=lambda each: each[0])


def _local_cost(inputs: ClusterInputs, size: int, num_pipelines: int, shards: int) -> ReplicatedCost:
    """Seconds of a step on a replica with the largest share of the shards of a pipeline on ``size`` GPUs."""
    cluster, overhead = inputs.cluster, inputs.network.overhead
    units = inputs.units_of(cluster.batch_per_gpu * size / shards)
    link = cluster.links[0 if size <= cluster.gpus_per_node else 1]

    @cache
    def block(first: int, end: int) -> tuple[float, float, float, int]:
        """Computing a shard, update, message of a shard, parameters."""
        parameters = sum(unit.parameters for unit in units[first:end])
        if not parameters or memory_bytes(units, first, end) > cluster.memory_bytes:
            return inf, 0.0, 0.0, 0
        update = sum(unit.update for unit in units[first:end])
        ends = [units[first - 1]] * (first > 0) + [units[end - 1]] * (end < len(units))
        message = max((link.seconds(unit.output_bytes) for unit in ends), default=0.0)
        return local_seconds(units, first, end) - update + 2 * overhead, update, message, parameters

    @cache
    def ways(replicas: int) -> list[Link]:
        pipelines, own = np.arange(num_pipelines)[:, None], np.arange(replicas)[None, :]
        return inputs.sum_ways((pipelines * size + own).reshape(-1), local=True)

    def cost(first: int, end: int, replicas: int) -> float:
        computing, update, message, parameters = block(first, end)
        passes = -(-shards // replicas)
        total = sum_seconds(ways(replicas), BYTES_OF_A_GRADIENT * parameters)
        return max(passes * computing + update + total, passes * message)

    return cost


def pipeline_layouts(inputs: ClusterInputs, engine: str, num_gpus: int) -> list[tuple[float, Layout]]:
    """Synchronous pipelines of every number of stages and microbatches, with an estimate of a step's seconds: the
    bubble, the messages while it fills and drains, and the sum."""
    cluster, found = inputs.cluster, []
    for stages in _sizes(num_gpus, 2):
        if stages > len(inputs.network.units):
            continue
        for microbatches in (stages * each for each in PER_STAGE):
            images = cluster.batch_per_gpu * stages / microbatches
            if images < 1:
                continue
            units = inputs.units_of(images)
            link = cluster.links[0 if stages <= cluster.gpus_per_node else 1]
            cost = stage_cost(units, Link(), inf)
            cut = best_cut(len(units), stages, _larger(cost, _within_memory(inputs, units, stages)))
            if cut is None:
                continue
            slowest = max(cost(*block) for block in pairwise([0, *cut, len(units)]))
            message = max(link.seconds(units[end - 1].output_bytes) + link.latency for end in cut)
            step = (microbatches + stages - 1) * slowest + 2 * (stages - 1) * message
            found += [
                (step, Layout(engine, tuple(cut), (1,) * stages, microbatches, num_gpus // stages, placement))
                for placement in _placements(cluster)
            ]
    return sorted(found, key=lambda each: each[0])


def _larger(one: Cost, other: Cost) -> Cost:
    return lambda first, end: max(one(first, end), other(first, end))


def _within_memory(inputs: ClusterInputs, units: Sequence[UnitCost], held: int) -> Cost:
    """0 for a stage that fits with the activations of ``held`` microbatches, as many as the first stage holds, else
    infinite."""

    def limited(first: int, end: int) -> float:
        fixed = BYTES_OF_A_PARAMETER * sum(unit.parameters for unit in units[first:end])
        one = memory_bytes(units, first, end, heads=False)
        return 0.0 if fixed + held * max(one - fixed, 0) <= inputs.cluster.memory_bytes else inf

    return limited


def fits_data_parallel(inputs: ClusterInputs) -> bool:
    """Whether the whole network fits one GPU, with the images of one GPU."""
    units = inputs.units_of(inputs.cluster.batch_per_gpu)
    return memory_bytes(units, 0, len(units), heads=False) <= inputs.cluster.memory_bytes


def _sizes(num_gpus: int, least: int) -> Iterator[int]:
    """The numbers of GPUs of a pipeline, from ``least``, that divide ``num_gpus``."""
    return (size for size in range(least, max(MOST_RANKS, least) + 1) if num_gpus % size == 0)


def _placements(cluster: Cluster) -> tuple[str, ...]:
    return PLACEMENTS if cluster.placement == "auto" else (cluster.placement,)
