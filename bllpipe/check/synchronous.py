"""Figures of ranks that hold stages or replicas, and of what torch carries between them.

Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from bllpipe.check.counted import SHAPES_ONLY, batch_of, kept_bytes, num_parameters, rank_memory, target_of
from bllpipe.check.figures import EdgeFigures, RankFigures, TensorFigures
from bllpipe.config import Config
from bllpipe.config.schema import TWO_STAGES
from bllpipe.engines.ddp import gradient_bytes, ring_bytes
from bllpipe.engines.job import Job, build_segment, input_shape, shape_of
from bllpipe.engines.share import Share
from bllpipe.engines.staged import microbatch_size, wire_format
from bllpipe.learn.units import Segment
from bllpipe.topology import Topology


def stage_figures(job: Job) -> Iterator[RankFigures]:
    """Every rank of a pipeline. The stages of a rank need not be neighbours, so all are built first."""
    segments = [build_segment(job, number, SHAPES_ONLY, "stage") for number in range(job.topology.num_stages)]
    for rank in job.topology.block_ranks:
        numbers = job.topology.stages_of(rank)
        share = _share(job, [segments[number] for number in numbers])
        kept = sum(_kept(job, share, segments[number], number, microbatch_size(job)) for number in numbers)
        memory = rank_memory(share.learner, int(kept * held_microbatches(job.config, job.topology, rank)))
        parameters = num_parameters(share.learner.weights().values())
        yield RankFigures(rank, job.topology.role(rank), parameters, memory)


def held_microbatches(config: Config, layout: Topology, rank: int) -> float:
    """How many microbatches a rank holds at most between their ways forth and back, a mean over its stages: all of
    them in gpipe, in the others as many as fill the stages behind it."""
    microbatches, ranks = config.pipeline.microbatches, layout.num_blocks
    if config.engine == "gpipe":
        return microbatches
    if config.engine not in TWO_STAGES:
        return min(microbatches, ranks - rank)
    passes = 3 * ranks - 2 * rank - 1 if layout.placement == "loop" else 2 * ranks
    return min(microbatches, passes / 2)


def replica_figures(job: Job) -> Iterator[RankFigures]:
    """Every replica. Beside its gradients each keeps the buckets in which they are averaged; only the first one
    answers for the statistics of normalisations."""
    segment = build_segment(job, 0, SHAPES_ONLY)
    share = _share(job, [segment])
    size = -(-job.config.data.batch_size // job.topology.num_blocks)
    memory = rank_memory(share.learner, _kept(job, share, segment, 0, size), gradient_bytes(segment))
    for rank in job.topology.block_ranks:
        weights = share.learner.parameters if rank else share.learner.weights()
        yield RankFigures(rank, job.topology.role(rank), num_parameters(weights.values()), memory)


def _share(job: Job, segments: list[Segment]) -> Share:
    return Share(segments, job.config, job.plan.total_steps, add_up=lambda square: square)


def _kept(job: Job, share: Share, segment: Segment, number: int, size: int) -> int:
    """Bytes that stage ``number`` keeps of ``size`` images."""
    share.mode(train=True)

    def there() -> Iterator[Tensor]:
        x = batch_of(size, input_shape(job, number), wants_gradient=number > 0)
        with share.learner.autocast():
            alpha: Tensor = segment(x.view_as(x))
        yield from (x, alpha)
        if number == job.topology.num_stages - 1:
            yield share.loss(alpha, target_of(size, 1).label_B)

    return kept_bytes(share.learner, there)


def hop_figures(job: Job) -> Iterator[EdgeFigures]:
    """Activations to the next stage and their gradients back, a message a microbatch, where it is on another rank."""
    for number in range(job.topology.num_stages - 1):
        src, dst = job.topology.rank_of(number), job.topology.rank_of(number + 1)
        if src != dst:
            yield _hop(job, "alpha", src, dst, number)
            yield _hop(job, "gradient", dst, src, number)


def _hop(job: Job, kind: str, src: int, dst: int, number: int) -> EdgeFigures:
    size, shape, dtype = microbatch_size(job), shape_of(job, number), wire_format(job, number)
    num_bytes, microbatches = size * prod(shape) * dtype.itemsize, job.config.pipeline.microbatches
    tensor = TensorFigures(str(dtype).removeprefix("torch."), (size, *shape))
    return EdgeFigures(kind, src, dst, (tensor,), num_bytes, microbatches, microbatches * num_bytes)


def gradient_ring(job: Job) -> Iterator[EdgeFigures]:
    """The gradients of replicas, which a ring averages: to the next one go two rounds of all shares but one."""
    num_replicas = job.topology.num_blocks
    num_bytes = gradient_bytes(build_segment(job, 0, SHAPES_ONLY))
    share = -(-num_bytes // num_replicas)
    tensor = TensorFigures("float32", (share // torch.float32.itemsize,))
    for src in job.topology.block_ranks if num_replicas > 1 else ():
        to, step_bytes = (src + 1) % num_replicas, ring_bytes(num_bytes, num_replicas)
        yield EdgeFigures("gradient", src, to, (tensor,), share, 2 * (num_replicas - 1), step_bytes)
