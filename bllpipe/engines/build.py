"""Building a rank: its segments and loops with their ports, its metrics, its checkpoints, and its state on resume.

A checkpoint names tensors by the units of the whole network, not by rank, so another cut or another engine can restore
them. A block that ends after another unit has a head, a feedback loop and optimizer state that the checkpoint lacks: a
warning names what starts fresh, and what of the checkpoint is not used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bllpipe.checkpoint import CheckpointWriter
from bllpipe.checkpoint.replicas import ReplicaWriter
from bllpipe.config import to_mapping
from bllpipe.config.schema import PIPELINES
from bllpipe.data.base import ImageSet, LabelSet, data_identity
from bllpipe.data.loader import LabelSource, label_batches
from bllpipe.distributed.replica_sum import ReplicaSum
from bllpipe.distributed.torchrun import is_lead
from bllpipe.engines.draws import make_draws, warn_of_draws
from bllpipe.engines.job import Job, JobStore
from bllpipe.engines.ports import (
    ActorPorts,
    Links,
    NullSender,
    PortWrapper,
    identity,
    image_port,
    in_passes,
    message_size_of,
)
from bllpipe.engines.sharding import Sharding
from bllpipe.errors import CheckpointError, ConfigError
from bllpipe.learn.block import Block, alpha_shape, make_block
from bllpipe.learn.cuda_graphs import speed_up
from bllpipe.learn.distributions import FAMILIES
from bllpipe.learn.draws import Draws
from bllpipe.learn.feedback import make_feedback
from bllpipe.learn.feedback_alignment import propagate
from bllpipe.learn.memory_format import place, without_cudnn
from bllpipe.learn.recompute import recompute_units
from bllpipe.learn.sync_norm import synchronize_norms
from bllpipe.messages import Round
from bllpipe.models.partition import cut
from bllpipe.models.registry import (
    check_batches,
    check_has_values,
    last_width,
    network_units,
    single_value_norms,
)
from bllpipe.models.units import Segment, Unit
from bllpipe.training.instrument import guard, trace
from bllpipe.training.loops import BlockLoop, FeedbackLoop, Loop, OneReplica, Replicas
from bllpipe.training.metrics_logger import MetricsLogger
from bllpipe.training.timing import Metered, Stopwatch
from bllpipe.training.tracing import Clock, SpanFile, align_clock, machine_id
from bllpipe.training.worker import Actor, Worker
from bllpipe.utils.console import warn
from bllpipe.utils.tensors import dtype_and_shape, is_of_network

Kind = Literal["block", "stage"]
STEADY_AFTER = 0.1  # fraction of the steps that rates leave out
MOST_NAMED = 6
ANOTHER_NETWORK = "it is of another network; give the keys of model and data their old values, or start a new run"


class JobBuilder:
    """Builds the workers of a job over the given links. ``wrap_port`` wraps every port, to delay messages for example;
    ``ahead`` prefetches images in a thread; ``beside_nccl``: NCCL kernels run on the GPUs of the blocks; ``sharding``
    is that of the segment of this rank."""

    def __init__(
        self,
        job: Job,
        store: JobStore,
        links: Links,
        wrap_port: PortWrapper = identity,
        ahead: bool = False,
        beside_nccl: bool = False,
        replica_group: Any = None,
        sharding: Sharding | None = None,
    ) -> None:
        self.job, self.store, self.links, self.wrap_port = job, store, links, wrap_port
        self.ahead, self.beside_nccl, self.replica_group, self.sharding = ahead, beside_nccl, replica_group, sharding

    def block_worker(self, rank: int, segment: Segment, device: torch.device, images: ImageSet | None) -> Worker:
        """The worker of one replica of a block; those of the first block read the images."""
        layout, ports, number = self.job.topology, self._ports(), self.job.topology.block_of(rank)
        block, passes = self._block(number, segment), layout.passes_of(rank)
        draws = self._draws(block, images)
        loop = BlockLoop(
            block,
            inputs=image_port(self.job, images, device, ahead=self.ahead, passes=passes)
            if images is not None
            else ports.block_inputs(rank),
            targets=ports.block_targets(rank),
            alphas=ports.block_alphas(rank),
            stats=ports.sender(layout.stats_edge(number, layout.shards_of(rank)[0])),
            passes=passes,
            replicas=self._replicas(rank, block, ports),
            draws=draws,
        )
        # the metrics of the first replica are those of the block
        name = layout.part_role(rank) if layout.is_lead(rank) else layout.role(rank)
        return self._worker(rank, [self._actor(rank, name, loop, ports, device)])

    def _draws(self, block: Block, images: ImageSet | None) -> Draws:
        """What ``block`` draws at random, and whether its units keep the states of generators to be computed again."""
        draws = make_draws(block, self.job.config, images, self.ahead)
        block.segment.may_draw = lambda: draws.found is not False
        return draws

    def _replicas(self, rank: int, block: Block, ports: ActorPorts) -> Replicas:
        """The sums over the replicas of the block of ``rank``; BatchNorm uses them too if ``norm`` is sync."""
        layout, config = self.job.topology, self.job.config
        ranks = layout.ranks_of(layout.block_of(rank))
        if len(ranks) == 1:
            return OneReplica()
        name = f"sum of block {layout.block_of(rank)}"
        held = [layout.passes_of(other) for other in ranks]
        of_rank = layout.replica_of(rank), held, self.replica_group, self.store, block.learner.trainable()
        port = ReplicaSum(name, ranks, *of_rank, ordered=config.reduce == "ordered")
        if config.norm == "sync":
            for part in (block.segment, block.local):
                synchronize_norms(part, port.add_up)
        if self.sharding is None:
            return ports.sum_over_replicas(port, name)
        ports.opened.append(self.sharding)
        shape = self.store.input_shape(layout.block_of(rank), self.job.spec.image_shape)
        return ports.sum_over_replicas(self.sharding.sums(port, block, held, layout.replica_of(rank), shape), name)

    def network_worker(self, segment: Segment, device: torch.device, images: ImageSet, labels: LabelSet) -> Worker:
        """The only worker of a network that learns end to end: it reads images and labels, and sends nothing."""
        rounds, nowhere, passes = self.job.rounds("train", "evaluate"), NullSender(), self.job.topology.passes_of(0)
        block = self._block(0, segment)
        loop = BlockLoop(
            block,
            inputs=image_port(self.job, images, device, ahead=self.ahead, passes=passes),
            targets=in_passes(LabelSource(labels, rounds, self.job.config.seed, device), passes),
            alphas=nowhere,
            stats=nowhere,
            passes=passes,
            draws=self._draws(block, images),
        )
        return self._worker(0, [self._actor(0, "block 0", loop, self._ports(), device)])

    def feedback_worker(self, rank: int, labels: LabelSet, device: torch.device) -> Worker:
        """The worker of a feedback rank: the feedback loops of its blocks."""
        job, config, actors = self.job, self.job.config, []
        names, family = unit_names(job), FAMILIES[config.objective.family]
        for block in job.topology.loops_of(rank):
            name = names[block]
            ports, channels = self._ports(), message_size_of(job, self.store, block)
            loop = FeedbackLoop(
                name,
                make_feedback(config.feedback, job.spec.num_classes, channels, config.seed, name, device, family),
                labels=(label_B for _, label_B in label_batches(labels, job.rounds(), config.seed, device)),
                targets=ports.feedback_targets(block),
                stats=ports.feedback_stats(block),
                lag=config.feedback.lag,
                passes=job.topology.passes_of(job.topology.ranks_of(block)[0]),
            )
            actors.append(self._actor(rank, f"lane {block}", loop, ports, device))
        return self._worker(rank, actors)

    def _block(self, number: int, segment: Segment) -> Block:
        job = self.job
        shapes = self.store.input_shape(number, job.spec.image_shape), self.store.shape_of(number)
        is_last = number == job.topology.num_blocks - 1
        sizes = job.spec.num_classes, job.schedule.total_steps
        on_head = (lambda head: None) if self.sharding is None else self.sharding.shard_head
        block = make_block(segment, *shapes, job.config, *sizes, is_last, width_for_heads(job), number, on_head)
        if number == 0 and isinstance(block.objective, nn.Module):
            warn_of_draws(dict(block.objective.named_children()), "the objective", job.config, block.learner.device)
        if self.beside_nccl and block.channels_last and not job.config.gpu.compile:  # a compiler has kernels of its own
            for part in (block.segment, block.local):
                without_cudnn(part)
        return speed_up(block, job.config)

    def _ports(self) -> ActorPorts:
        return ActorPorts(self.job, self.store, self.links, self.wrap_port)

    def _actor(self, rank: int, name: str, loop: Loop, ports: ActorPorts, device: torch.device) -> Actor:
        return make_actor(self.job, self.store, rank, self.job.topology.role(rank), name, loop, ports.opened, device)

    def _worker(self, rank: int, actors: list[Actor]) -> Worker:
        return make_worker(self.job, self.store, rank, actors, self.sharding)


def make_actor(
    job: Job,
    store: JobStore,
    rank: int,
    role: str,
    name: str,
    loop: Loop,
    ports: list[Metered],
    device: torch.device,
) -> Actor:
    """``loop`` with stopwatch, metrics logger, a check of its losses and, with ``trace.num_steps``, spans."""
    stopwatch = Stopwatch(ports, int(job.start + STEADY_AFTER * (job.schedule.last_step - job.start)))
    place = {"rank": rank, "role": role, "actor": name}
    log_every, writes = job.config.log.every_steps, job.topology.is_lead(rank)
    metrics = MetricsLogger(place, job.directory, store, stopwatch, log_every, writes)
    actor = guard(Actor(loop, stopwatch, metrics), at_lines=device.type != "cpu")
    settings = job.config.trace
    window = range(settings.first_step, settings.first_step + settings.num_steps)
    return trace(actor, window) if window else actor


def make_worker(job: Job, store: JobStore, rank: int, actors: list[Actor], sharding: Sharding | None = None) -> Worker:
    """A rank: its actors, restored from the checkpoint, and the writer of its shard of every checkpoint."""
    restore_actors(job, store, rank, actors)
    settings, layout = job.config.checkpoint, job.topology
    writer = CheckpointWriter(
        job.directory.checkpoints, store, layout.num_parts, job.attempt, settings.keep, settings.if_unwritable
    )
    place = {"rank": layout.part_of(rank), "role": layout.part_role(rank)}
    metadata = {**place, "config": to_mapping(job.config), "data": data_identity(job.spec)}
    spans = _span_file(job, store, rank, actors)
    ranks = () if layout.is_feedback(rank) else layout.ranks_of(layout.block_of(rank))
    is_shared, number = len(ranks) > 1, 0 if layout.is_feedback(rank) else layout.replica_of(rank)
    gather = None if sharding is None else sharding.gather
    checkpoints = ReplicaWriter(writer, store, layout.role(ranks[0]), ranks, number, gather) if is_shared else writer
    worker = Worker(rank, layout.role(rank), actors, checkpoints, metadata, spans, layout.part_of(rank))
    if sharding is not None:
        worker.all_weights = sharding.whole
    for callback in job.callbacks:
        callback.on_start(job, store, worker)
    return worker


def _span_file(job: Job, store: JobStore, rank: int, actors: Sequence[Actor]) -> SpanFile | None:
    """The file for the spans of a rank. Ranks in processes align their clocks: all of them must call it."""
    tracks, clock = [actor.track for actor in actors if actor.track is not None], Clock()
    if not tracks:
        return None
    if dist.is_initialized():
        clock = align_clock(store, rank, job.topology.world_size, machine_id())
    header = {"rank": rank, "role": job.topology.role(rank), **asdict(clock)}
    return SpanFile(job.directory, header, tracks)


def restore_actors(job: Job, store: JobStore, rank: int, actors: Sequence[Actor]) -> None:
    """Restores the actors of a rank from the checkpoint; a warning names what starts fresh."""
    if job.checkpoint is None:
        return
    own_names = {name for actor in actors for name in (*actor.loop.weights(), *actor.loop.state())}
    job.checkpoint.verify(own_names)
    found, place = job.checkpoint.mapped(), job.checkpoint.path.name
    taken, fresh = set[str](), set[str]()
    for actor in actors:
        loop = actor.loop
        taken |= actor.metrics.load(found)
        check_complete_state(loop.weights(), found, place)
        fits = matching_tensors({**loop.weights(), **loop.state()}, found, place)
        loop.load(fits, job.start)
        own = loop.state().keys()  # after the load: with the statistics that wait to be absorbed
        taken, fresh = taken | (own & fits.keys()), fresh | (own - fits.keys())
    if fresh:
        role = job.topology.role(rank)
        warn(f"rank {rank} ({role}): starts fresh, as {place} holds nothing that fits: {in_groups(fresh)}")
    store.post("restored", rank, sorted(taken))


def report_unused(job: Job, store: JobStore) -> None:
    """A warning names the tensors of the checkpoint that no rank has restored. For one rank; waits for all ranks."""
    if job.checkpoint is None:
        return
    taken = {name for names in store.gather("restored", job.topology.world_size) for name in names}
    left = [name for name in job.checkpoint.names() if name not in taken]
    if left:
        warn(f"no rank restores from {job.checkpoint.path.name}: {in_groups(left)}")


def check_complete_state(weights: Iterable[str], found: Iterable[str], place: str) -> None:
    """Raises CheckpointError unless all of ``weights`` that are the network's own are among ``found``."""
    absent = sorted(filter(is_of_network, set(weights) - set(found)))
    if absent:
        raise CheckpointError(f"{place} holds nothing for {in_groups(absent)}, which this run needs: {ANOTHER_NETWORK}")


def matching_tensors(own: Mapping[str, Tensor], found: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """``found`` without tensors whose shape or dtype differs from ``own``; CheckpointError if one of them is a part of
    the network itself."""
    fits = dict(found)
    for name in sorted(own.keys() & found.keys()):
        held, needed = dtype_and_shape(found[name]), dtype_and_shape(own[name])
        if held != needed and name.startswith("model."):
            raise CheckpointError(f"{place} holds {name} as {held}, but this run needs {needed}: {ANOTHER_NETWORK}")
        if held != needed:
            del fits[name]
    return fits


def in_groups(names: Iterable[str]) -> str:
    """``heads.layer1.1 (2), feedback.layer1.1 (2)``: how many names of each unit."""
    # the name of a unit ends with the third word, with ``optimizer`` in front with the fourth
    words = (name.split(".") for name in sorted(names))
    groups = Counter(".".join(each[: 4 if each[0] == "optimizer" else 3]) for each in words)
    shown = [f"{group} ({number})" for group, number in list(groups.items())[:MOST_NAMED]]
    left = len(groups) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left else "")


def build_job_segment(
    job: Job, store: JobStore, number: int, device: torch.device, kind: Kind = "block", sharding: Sharding | None = None
) -> Segment:
    """The segment of block ``number``, or of that stage of a network that learns end to end, on its device; posts the
    shape of its alpha. A network that is not cut is block 0 of every replica. With ``sharding`` every unit is sharded
    before the next one is built."""
    config, num_classes = job.config, job.spec.num_classes
    units, name = units_of(job), f"{kind} {number}"
    parts = cut(units, config.cuts if kind == "block" else config.blocks)
    segment = Segment(parts[number], config.seed) if sharding is None else sharding.build(parts[number], config.seed)
    if number == 0:  # units that come with bllpipe draw nothing
        built = {unit.name: unit.layers[0].make() for unit in units if unit.is_built}
        warn_of_draws(built, "the model", config, device)
        _report_classifier(job, units)
    if device.type != "meta":
        check_has_values(segment, name)
    propagate(segment, config.method, num_classes, config.seed)
    if sharding is None:
        segment = place(segment, config, device)  # after propagate: feedback weights have the same memory format
    if config.model.recompute == "units":
        recompute_units(segment)
    if sharding is not None:
        sharding.run_units(segment)  # last: what is computed again is gathered before
    with single_value_norms(segment) as norms:
        shape = _output_shape(segment, store.input_shape(number, job.spec.image_shape), device, name)
    check_batches(norms, *_smallest_batches(job), name)
    if number == len(parts) - 1 and shape != (num_classes,):
        raise ConfigError(
            f"the last {kind} gives {list(shape)} for each image; expected {num_classes} class scores: "
            f"let the network end with a layer that gives them"
        )
    store.set_shape(number, shape)
    return segment


def _report_classifier(job: Job, units: Sequence[Unit]) -> None:
    """A warning says which weights are not those of the file ``model.weights``."""
    path = job.config.model.weights
    if path is None or job.checkpoint is not None or not is_lead():
        return
    from bllpipe.models.pretrained import left_out, note  # safetensors, which others do not need here

    if names := left_out(units, path):
        warn(note(names, path, job.spec.num_classes))


def _smallest_batches(job: Job) -> tuple[int, int]:
    """The size of the smallest batch of one forward pass, in training and in the test."""
    config, num_test = job.config, job.spec.num_test
    size = config.data.batch_size
    parts = config.pipeline.microbatches if config.engine in PIPELINES else 1
    if config.engine == "ddp":
        parts = job.topology.num_blocks
    last = num_test % size or min(size, num_test)
    return size // max(parts, config.num_passes), Round("evaluate", 0, size=last).shards(config.num_passes)[-1].size


def _output_shape(segment: Segment, input_shape: tuple[int, ...], device: torch.device, name: str) -> tuple[int, ...]:
    try:
        return alpha_shape(segment, input_shape, device)
    except ConfigError:
        raise
    except Exception as error:  # a user-defined module may raise anything
        raise ConfigError(
            f"{name} ({segment.last_unit} last) cannot take {list(input_shape)} from what is before it: {error}; "
            f"cut somewhere else, or change the network"
        ) from error


def unit_names(job: Job) -> list[str]:
    """The last unit of every block, whose name heads and feedback loops have."""
    return [block[-1].name for block in cut(units_of(job), job.config.cuts)]


def width_for_heads(job: Job) -> int | None:
    """The number of channels at the end of the network, for local heads that need it; None for the others."""
    return last_width(job.config, units_of(job)) if job.config.objective.head == "strided" else None


def units_of(job: Job) -> list[Unit]:
    """The whole network, as units."""
    model = job.config.model
    if job.checkpoint is not None:  # which has the weights
        model = replace(model, weights=None)
    return network_units(model, job.spec.image_shape, job.spec.num_classes, job.config.seed)
