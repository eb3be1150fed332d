"""Estimates of a run before it starts (ranks, edges, parameters, bytes, memory), counted on meta tensors: nothing is
computed, sent or read.

The network is built by the functions that its ranks call, one rank after another, and then moved to the meta device: to
build it there would import torch's compiler.

Shapes: B images, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import chain, permutations
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bllpipe.config import Config
from bllpipe.config.schema import TWO_STAGES
from bllpipe.data.catalog import DataSpec
from bllpipe.distributed.message_format import LIMIT
from bllpipe.engines import topology
from bllpipe.engines.build import build_job_segment, unit_names, units_of, width_for_heads
from bllpipe.engines.ddp import gradient_bytes, ring_bytes
from bllpipe.engines.job import Job, JobStore
from bllpipe.engines.pipeline_stages import microbatch_size, wire_format
from bllpipe.engines.ports import layout_of, message_size_of
from bllpipe.engines.synchronous import StageTrainer
from bllpipe.errors import BllpipeError, ConfigError
from bllpipe.learn.balanced_cut import with_balanced_cut
from bllpipe.learn.block import Block, make_block
from bllpipe.learn.distributions import FAMILIES
from bllpipe.learn.feedback import make_feedback
from bllpipe.learn.optimizer import Learner
from bllpipe.messages import Round, Target
from bllpipe.models.units import Segment
from bllpipe.tools.planning.estimates import EdgeEstimate, Estimates, Memory, PlaceEstimate, RankEstimate, TensorSpec
from bllpipe.tools.planning.profiler import kept_bytes, storages
from bllpipe.topology import Topology
from bllpipe.training.run_directory import RunDirectory
from bllpipe.training.run_schedule import RunSchedule

SHAPES_ONLY = torch.device("meta")
COUNTED = 2  # images: normalisations reject one image with a single position


class NeedsRealTensors(Exception):
    """The network cannot be called on meta tensors; it may be trainable."""


def count(config: Config, spec: DataSpec) -> Estimates:
    """The estimates of ``config`` on data of ``spec``, with activations as without autocast.

    Raises ConfigError for a network that no run could compute, and NeedsRealTensors for one that depends on values.
    """
    config = with_balanced_cut(config, spec.image_shape, spec.num_classes)
    config = replace(config, precision=replace(config.precision, compute="fp32"))  # autocast needs a real device
    # the job that ranks would agree on, with a store of this process and a directory that is never written
    store = JobStore(dist.HashStore())  # type: ignore[arg-type]  # satisfies the protocol
    schedule = RunSchedule.of(config, spec.num_train, spec.num_test)
    job = Job(config, topology(config), RunDirectory(Path()), "", spec, schedule, None)
    edges: Iterable[EdgeEstimate]
    with _explained(config):  # the edges need the shapes that counting the ranks leaves in the store
        match job.topology.placement:
            case "block":
                ranks = tuple(sorted(_blocks(job, store), key=lambda each: each.rank))
                edges = tuple(chain(_message_edges(job, store), _sums(job.topology, ranks)))
                ranks = tuple(_with_slices(job, rank) for rank in ranks)
            case "replica":
                ranks, edges = tuple(_replicas(job, store)), _gradient_ring(job, store)
            case _:
                ranks, edges = tuple(_pipeline_ranks(job, store)), _stage_edges(job, store)
        return Estimates(schedule.total_steps, schedule.steps_per_epoch, ranks, tuple(edges), tuple(_places(job)))


def _places(job: Job) -> Iterator[PlaceEstimate]:
    for unit in units_of(job)[:-1]:
        if unit.shape is not None:
            parameters = sum(each.numel() for layer in unit.layers for each in layer.make().parameters())
            yield PlaceEstimate(unit.name, unit.shape, parameters)


@contextmanager
def _explained(config: Config) -> Iterator[None]:
    """Raises NeedsRealTensors for an error of meta tensors, and ConfigError for any other."""
    try:
        yield
    except Exception as error:  # a user-defined module may raise anything
        cause = error.__cause__ if isinstance(error, BllpipeError) else error
        # torch has no class of its own for errors of meta tensors
        if isinstance(cause, RuntimeError) and re.search(r"\b(meta|autocast|scalarType)\b", str(cause), re.IGNORECASE):
            raise NeedsRealTensors(str(cause)) from error
        if isinstance(error, BllpipeError):
            raise
        raise ConfigError(
            f"model {config.model.name} cannot compute batches of {config.data.batch_size} images: {error}; "
            f"change the network, or --set data.batch_size"
        ) from error


def _rank_memory(learner: Learner, activations: int, messages: int = 0) -> Memory:
    """The memory of a rank that trains ``learner``."""
    trained = learner.optimizer
    return Memory(
        weights=sum(storages(learner.weights().values()).values()),
        gradients=sum(p.nbytes for p in trained.parameters.values() if p.requires_grad),
        optimizer=sum(value.nbytes for value in trained.state.values()),
        activations=activations,
        messages=messages,
    )


def _with_slices(job: Job, rank: RankEstimate) -> RankEstimate:
    """The rank with its slices alone, if its block lies sharded: one unit at a time is whole."""
    layout = job.topology
    if job.config.sharding == "none" or layout.is_feedback(rank.rank):
        return rank
    memory, number = rank.memory, len(layout.ranks_of(layout.block_of(rank.rank)))
    sliced = {name: getattr(memory, name) // number for name in ("weights", "gradients", "optimizer")}
    return replace(rank, memory=replace(memory, **sliced))


def _num_parameters(weights: Iterable[Tensor]) -> int:
    """The number of parameters as in summary.json: all numbers that training changes except counters."""
    return sum(value.numel() for value in weights if value.is_floating_point())


def _zeros(size: int, shape: tuple[int, ...], requires_grad: bool = False) -> Tensor:
    """Images or activations, [B, ...]; activations of a pipeline require a gradient."""
    return torch.zeros(size, *shape, requires_grad=requires_grad, device=SHAPES_ONLY)


def _target(size: int, channels: int) -> Target:
    """A feedback message and labels for ``size`` images."""
    label_B = torch.zeros(size, dtype=torch.int64, device=SHAPES_ONLY)
    return Target(Round("train", 0), _zeros(size, (channels,)), _zeros(size, ()), label_B)


def _tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(str(dtype).removeprefix("torch."), shape)


def _blocks(job: Job, store: JobStore) -> Iterator[RankEstimate]:
    """The ranks of the blocks in their order in the network, as each needs the shapes before it, and the feedback."""
    for block in range(job.topology.num_blocks):
        yield from _replicas_of(job, store, block)
    for rank in job.topology.feedback_ranks:
        yield _feedback(job, store, rank)


def _replicas_of(job: Job, store: JobStore, number: int) -> Iterator[RankEstimate]:
    """The replicas of a block, each of which holds as many images at once as go through it together."""
    segment = build_job_segment(job, store, number, SHAPES_ONLY)
    input_shape, alpha_shape = store.input_shape(number, job.spec.image_shape), store.shape_of(number)
    is_last = number == job.topology.num_blocks - 1
    sizes = job.spec.num_classes, job.schedule.total_steps
    block = make_block(segment, input_shape, alpha_shape, job.config, *sizes, is_last, width_for_heads(job), number)
    learner, batch = block.learner, Round("train", 0, size=job.config.data.batch_size)
    parameters, of_head = (_num_parameters(part.values()) for part in (learner.weights(), block.local.state_dict()))
    operations = _operations(block, input_shape)

    @cache
    def kept(size: int) -> int:
        recomputed = (
            max(_kept_by_units(segment, _zeros(size, input_shape))) if job.config.model.recompute != "none" else 0
        )
        return kept_bytes(partial(forward, size), learner.weights().values()) + recomputed

    def forward(size: int) -> Iterator[Tensor]:
        """One pass up to the losses. The gradient of alpha exists at the peak of memory, too."""
        x = _zeros(size, input_shape)
        alpha = block.forward(x)
        terms, scores_BK, _ = block.losses(alpha, _target(size, block.message_size))
        yield from (x, alpha, scores_BK, torch.empty_like(alpha), *terms.values())

    for rank in job.topology.ranks_of(number):
        size = max(each.size for _, each in job.topology.passes_of(rank).own_of(batch))
        memory = _rank_memory(learner, kept(size), _message_buffers(job, store, rank))
        yield RankEstimate(rank, job.topology.role(rank), parameters, memory, of_head, *operations)


def _kept_by_units(segment: Segment, x: Tensor) -> Iterator[int]:
    """Bytes that each unit keeps while the backward pass computes it again."""
    for number in range(len(segment.unit_ends)):
        outputs: list[Tensor] = []

        def run(number: int = number, x: Tensor = x, outputs: list[Tensor] = outputs) -> list[Tensor]:
            outputs.append(segment.run_unit(number, x))
            return outputs

        yield kept_bytes(run, segment.parameters())
        x = outputs[0].detach()


@torch.no_grad()
def _operations(block: Block, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """Operations of the forward pass of one image: through block and local loss, and of the local loss alone."""
    x = _zeros(COUNTED, input_shape)
    with FlopCounterMode(display=False) as of_block:
        alpha = block.forward(x)
    with FlopCounterMode(display=False) as of_head:
        block.losses(alpha, _target(COUNTED, block.message_size))
    head = of_head.get_total_flops() // COUNTED
    return of_block.get_total_flops() // COUNTED + head, head


def _feedback(job: Job, store: JobStore, rank: int) -> RankEstimate:
    """A feedback rank: the feedback loops of its blocks."""
    config, family, state = job.config, FAMILIES[job.config.objective.family], list[Tensor]()
    names = unit_names(job)
    for block in job.topology.loops_of(rank):
        sizes = job.spec.num_classes, message_size_of(job, store, block)
        state += make_feedback(config.feedback, *sizes, config.seed, names[block], SHAPES_ONLY, family).state().values()
    memory = Memory(sum(value.nbytes for value in state), 0, 0, 0, _message_buffers(job, store, rank))
    return RankEstimate(rank, job.topology.role(rank), _num_parameters(state), memory)


def _message_buffers(job: Job, store: JobStore, rank: int) -> int:
    """Bytes of message buffers: a ring for every incoming edge, and messages in flight to other processes."""
    in_flight = job.config.backend.in_flight if job.config.engine == "ranks" else 0
    layouts = [layout_of(job, store, edge) for edge in job.topology.edges() if rank in (edge.src, edge.dst)]
    return sum(
        (layout.ring if layout.edge.dst == rank else in_flight) * layout.message_bytes(layout.max_batch, LIMIT)
        for layout in layouts
    )


def _message_edges(job: Job, store: JobStore) -> Iterator[EdgeEstimate]:
    """Every edge has one message a training step for each of its shards; of statistics, for each pass."""
    ranks = job.topology
    for edge in ranks.edges():
        layout = layout_of(job, store, edge)
        size = layout.max_batch
        number = len(ranks.passes_of(edge.src).own if edge.kind == "stats" else ranks.shards_on(edge))
        tensors = tuple(_tensor(dtype, shape) for dtype, shape in layout.shapes(size, "train"))
        num_bytes, more = layout.message_bytes(size, "train"), layout.message_bytes(size, LIMIT)
        sizes = num_bytes, number, number * num_bytes, more - num_bytes
        yield EdgeEstimate(edge.kind, edge.src, edge.dst, tensors, *sizes)


def _sums(layout: Topology, ranks: Sequence[RankEstimate]) -> Iterator[EdgeEstimate]:
    """The gradients that replicas of a block add up: each sends every other one a chunk of them, and the sum of its
    own."""
    for replicas in map(layout.ranks_of, range(layout.num_blocks)):
        chunk = -(-ranks[replicas[0]].memory.gradients // len(replicas))
        tensor = _tensor(torch.float32, (chunk // torch.float32.itemsize,))
        for src, dst in permutations(replicas, 2):
            yield EdgeEstimate("gradient", src, dst, (tensor,), chunk, 2, 2 * chunk)


def _pipeline_ranks(job: Job, store: JobStore) -> Iterator[RankEstimate]:
    """Every rank of a pipeline. The stages of a rank need not be consecutive, so all are built first."""
    segments = [
        build_job_segment(job, store, number, SHAPES_ONLY, "stage") for number in range(job.topology.num_stages)
    ]
    for rank in job.topology.block_ranks:
        numbers = job.topology.stages_of(rank)
        trainer = _trainer(job, [segments[number] for number in numbers])
        kept = sum(
            _stage_bytes(job, store, trainer, segments[number], number, microbatch_size(job)) for number in numbers
        )
        memory = _rank_memory(trainer.learner, int(kept * held_microbatches(job.config, job.topology, rank)))
        parameters = _num_parameters(trainer.learner.weights().values())
        yield RankEstimate(rank, job.topology.role(rank), parameters, memory)


def held_microbatches(config: Config, layout: Topology, rank: int) -> float:
    """The most microbatches that a rank holds between forward and backward, a mean over its stages: all of them in
    gpipe, in other schedules as many as fill the stages after it."""
    microbatches, ranks = config.pipeline.microbatches, layout.num_blocks
    if config.engine == "gpipe":
        return microbatches
    if config.engine not in TWO_STAGES:
        return min(microbatches, ranks - rank)
    passes = 3 * ranks - 2 * rank - 1 if layout.placement == "loop" else 2 * ranks
    return min(microbatches, passes / 2)


def _trainer(job: Job, segments: list[Segment]) -> StageTrainer:
    return StageTrainer(segments, job.config, job.schedule.total_steps, add_up=lambda square: square)


def _stage_bytes(job: Job, store: JobStore, trainer: StageTrainer, segment: Segment, number: int, size: int) -> int:
    """Bytes that stage ``number`` keeps of ``size`` images."""
    trainer.mode(train=True)

    def forward() -> Iterator[Tensor]:
        x = _zeros(size, store.input_shape(number, job.spec.image_shape), requires_grad=number > 0)
        with trainer.learner.autocast():
            alpha: Tensor = segment(x.view_as(x))
        yield from (x, alpha)
        if number == job.topology.num_stages - 1:
            yield trainer.loss(alpha, _target(size, 1).label_B)

    return kept_bytes(forward, trainer.learner.weights().values())


def _stage_edges(job: Job, store: JobStore) -> Iterator[EdgeEstimate]:
    """Activations to the next stage, if it is on another rank, and their gradients back, a message for a microbatch."""
    size, microbatches = microbatch_size(job), job.config.pipeline.microbatches
    for number in range(job.topology.num_stages - 1):
        src, dst = job.topology.rank_of(number), job.topology.rank_of(number + 1)
        if src != dst:
            shape, dtype = (size, *store.shape_of(number)), wire_format(job, number)
            tensors, num_bytes = (_tensor(dtype, shape),), prod(shape) * dtype.itemsize
            sizes = num_bytes, microbatches, microbatches * num_bytes
            yield EdgeEstimate("alpha", src, dst, tensors, *sizes)
            yield EdgeEstimate("gradient", dst, src, tensors, *sizes)


def _replicas(job: Job, store: JobStore) -> Iterator[RankEstimate]:
    """Every replica. In addition to its gradients each keeps the buckets in which they are averaged; statistics of
    normalisations count for the first one only."""
    segment = build_job_segment(job, store, 0, SHAPES_ONLY)
    trainer = _trainer(job, [segment])
    size = -(-job.config.data.batch_size // job.topology.num_blocks)
    memory = _rank_memory(
        trainer.learner, _stage_bytes(job, store, trainer, segment, 0, size), messages=gradient_bytes(segment)
    )
    for rank in job.topology.block_ranks:
        weights = trainer.learner.parameters if rank else trainer.learner.weights()
        yield RankEstimate(rank, job.topology.role(rank), _num_parameters(weights.values()), memory)


def _gradient_ring(job: Job, store: JobStore) -> Iterator[EdgeEstimate]:
    """The gradients of replicas, averaged by a ring: each sends all shares but one to the next replica, twice."""
    num_replicas = job.topology.num_blocks
    num_bytes = gradient_bytes(build_job_segment(job, store, 0, SHAPES_ONLY))
    share = -(-num_bytes // num_replicas)
    tensor = _tensor(torch.float32, (share // torch.float32.itemsize,))
    for src in job.topology.block_ranks if num_replicas > 1 else ():
        dst, step_bytes = (src + 1) % num_replicas, ring_bytes(num_bytes, num_replicas)
        yield EdgeEstimate("gradient", src, dst, (tensor,), share, 2 * (num_replicas - 1), step_bytes)
