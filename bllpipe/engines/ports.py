"""The layout of the messages on each edge of a job, and the timed ports of an actor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol

import torch
from torch import nn

from bllpipe.data.base import ImageSet
from bllpipe.data.loader import ImageSource, Prefetcher, placed
from bllpipe.distributed.cuda_streams import OpenStreams, RingLinks
from bllpipe.distributed.message_format import Layout, alpha_fields, stats_fields, target_fields
from bllpipe.engines.job import Job, JobStore
from bllpipe.learn.heads import make_head, message_size
from bllpipe.learn.memory_format import uses_channels_last
from bllpipe.messages import (
    ONE_PASS,
    Alpha,
    Message,
    Passes,
    Phase,
    Receiver,
    Round,
    Sender,
    ShardedMessage,
    Stats,
    Target,
    copied,
    join,
    joined,
    split,
)
from bllpipe.models.partition import cut
from bllpipe.models.registry import last_width, network_units, units_after
from bllpipe.topology import Edge
from bllpipe.training.timing import Metered, ReplicaPort, TimedReceiver, TimedSender, TimedSum


class Links(Protocol):
    """Opens the two ends of an edge: LocalLinks, ProcessLinks or RingLinks."""

    def sender(self, layout: Layout) -> Sender[Any]: ...

    def receiver(self, layout: Layout, rounds: Iterator[Round]) -> Receiver[Any]: ...


class PortWrapper(Protocol):
    """Wraps the ports of actors; the tests delay messages with it."""

    def __call__(self, port: Any, edge: Edge) -> Any: ...


def identity(port: Any, edge: Edge) -> Any:
    """The port itself."""
    return port


def layout_of(job: Job, store: JobStore, edge: Edge) -> Layout:
    """The layout of an edge, which both of its ends compute."""
    config, num_classes = job.config, job.spec.num_classes
    block, num_shards = job.topology.block_of(edge.dst if edge.kind == "target" else edge.src), job.topology.num_shards
    shape = store.shape_of(block)
    ring, received = num_shards * config.backend.ring, torch.float32
    match edge.kind:
        case "alpha":
            fields = alpha_fields(shape, job.alpha_dtype, num_classes if config.evaluate.ensemble else 0)
            if config.precision.compute == config.precision.wire == "bf16":
                received = torch.bfloat16  # a block that computes in bf16 reads the message in place
        case "target":
            fields = target_fields(message_size_of(job, store, block))
        case "stats":
            fields = stats_fields(num_classes, message_size_of(job, store, block))
            # a block may be so many steps ahead of what its feedback absorbs
            ring = max(ring, num_shards * config.feedback.lag)
    roles = (job.topology.role(edge.src), job.topology.role(edge.dst))
    return Layout(edge, roles, fields, config.data.batch_size // num_shards, ring, received)


def message_size_of(job: Job, store: JobStore, block: int) -> int:
    """The numbers of one image's message to and from the feedback of ``block``; of a head's embedding too, whose head
    only the rank of the block has."""
    config, shape = job.config, store.shape_of(block)
    head: nn.Module = nn.Identity()
    if config.objective.message == "embedding" and len(shape) == 3:
        units = network_units(
            replace(config.model, weights=None), job.spec.image_shape, job.spec.num_classes, config.seed
        )
        later = units_after(config, cut(units, config.cuts)[block][-1].name)
        with torch.random.fork_rng(devices=[]):
            head = make_head(shape, job.spec.num_classes, config.objective, last_width(config, units), later)
    return message_size(config.objective, shape, head)


def rounds_of(job: Job, edge: Edge) -> Iterator[Round]:
    """The remaining rounds of messages on ``edge``, one for every shard that travels on it. Statistics are those of all
    shards that went through the block together; tests send none."""
    layout = job.topology
    if edge.kind == "stats":
        passes = layout.passes_of(edge.src)
        return (each for entry in job.rounds("train") for _, each in passes.own_of(entry))
    shards, rounds = layout.shards_on(edge), job.rounds("train", "evaluate")
    return (each for entry in rounds for each in entry.shards(layout.num_shards) if each.shard in shards)


class ActorPorts:
    """Opens the timed ports of one actor; ``opened`` is for its stopwatch."""

    def __init__(self, job: Job, store: JobStore, links: Links, wrap_port: PortWrapper) -> None:
        self._job, self._store, self._links, self._wrap_port = job, store, links, wrap_port
        self.opened: list[Metered] = []

    def block_inputs(self, rank: int) -> Receiver[Alpha]:
        """The alphas that the replica of ``rank`` receives from the block before, one for each of its passes."""
        layout = self._job.topology
        edge_of, shards = partial(layout.alpha_edge, layout.block_of(rank) - 1), layout.shards_of(rank)
        return self._joined(rank, self._gathered(edge_of, shards, ("train", "evaluate")))

    def block_targets(self, rank: int) -> Receiver[Target]:
        """The targets that the replica of ``rank`` receives, one for each of its passes."""
        layout = self._job.topology
        return self._joined(rank, self.receiver(layout.target_edge(layout.block_of(rank), layout.shards_of(rank)[0])))

    def block_alphas(self, rank: int) -> Sender[Alpha]:
        """The sender of the alphas of the passes of ``rank``."""
        layout = self._job.topology
        edge_of = partial(layout.alpha_edge, layout.block_of(rank))
        port = self._routed({shard: edge_of(shard) for shard in layout.shards_of(rank)})
        return SplitSender(port, self._members(rank)) if layout.joins_shards else port

    def feedback_targets(self, block: int) -> Sender[Target]:
        """The sender of the targets of all shards in ``block``."""
        layout = self._job.topology
        return self._routed({shard: layout.target_edge(block, shard) for shard in range(layout.num_shards)})

    def feedback_stats(self, block: int) -> Receiver[Stats]:
        """The statistics of all passes through ``block``, in the order of shards."""
        layout = self._job.topology
        passes = layout.passes_of(layout.ranks_of(block)[0])
        firsts = [each.start for each in passes.shards]
        return self._gathered(partial(layout.stats_edge, block), firsts, ("train",))

    def sum_over_replicas(self, port: ReplicaPort, name: str) -> TimedSum:
        """``port``, timed."""
        timed = TimedSum(port, name)
        self.opened.append(timed)
        return timed

    def _routed(self, edges: Mapping[int, Edge | None]) -> Sender[Any]:
        """The sender of messages about shards, each on the edge that ``edges`` names."""
        ports = {edge: self.sender(edge) for edge in dict.fromkeys(edges.values())}
        if len(ports) == 1:
            return next(iter(ports.values()))
        return RoutedSender({shard: ports[edge] for shard, edge in edges.items()})

    def _gathered(
        self, edge_of: Callable[[int], Edge | None], shards: Sequence[int], phases: Sequence[Phase]
    ) -> Receiver[Any]:
        """The receiver of the messages about ``shards``, in their order, from the edge of each."""
        edges = {shard: edge_of(shard) for shard in shards}
        ports = {edge: self.receiver(edge) for edge in dict.fromkeys(edges.values())}
        if len(ports) == 1:
            return next(iter(ports.values()))
        number = self._job.topology.num_shards
        order = (
            each.shard for entry in self._job.rounds(*phases) for each in entry.shards(number) if each.shard in edges
        )
        return GatheringReceiver({shard: ports[edge] for shard, edge in edges.items()}, order)

    def _joined(self, rank: int, port: Receiver[ShardedMessage]) -> Receiver[ShardedMessage]:
        return JoiningReceiver(port, self._members(rank)) if self._job.topology.joins_shards else port

    def _members(self, rank: int) -> Iterator[list[Round]]:
        """The shards of every pass of ``rank``, in order."""
        passes = self._job.topology.passes_of(rank)
        for entry in self._job.rounds("train", "evaluate"):
            members = passes.members(entry)
            yield from (members[number] for number in passes.own if members[number])

    def sender(self, edge: Edge | None) -> Sender[Any]:
        """The outgoing end of ``edge``; without an edge, what is sent is dropped (the last block's class scores)."""
        if edge is None:
            return NullSender()
        layout = layout_of(self._job, self._store, edge)
        sender = TimedSender(self._wrap_port(self._links.sender(layout), edge), str(edge), layout.message_bytes)
        self.opened.append(sender)
        return sender

    def receiver(self, edge: Edge | None) -> Receiver[Any]:
        """The incoming end of ``edge``."""
        assert edge is not None, "the block before has an edge to this one"
        layout = layout_of(self._job, self._store, edge)
        port = self._wrap_port(self._links.receiver(layout, rounds_of(self._job, edge)), edge)
        receiver = TimedReceiver(port, str(edge))
        self.opened.append(receiver)
        return receiver


@dataclass
class RoutedSender:
    """A sender of messages about shards; each has a port."""

    ports: Mapping[int, Sender[Any]]

    def send(self, message: Message) -> None:
        self.ports[message.round.shard].send(message)


@dataclass
class GatheringReceiver:
    """A receiver of messages about shards, in the ``order`` of their numbers; each has a port."""

    ports: Mapping[int, Receiver[Any]]
    order: Iterator[int]

    def recv(self) -> Any:
        return self.ports[next(self.order)].recv()


@dataclass
class SplitSender:
    """Sends messages about several shards in parts: ``members`` are the shards of each."""

    port: Sender[Any]
    members: Iterator[list[Round]]

    def send(self, message: Alpha) -> None:
        for part in split(message, next(self.members)):
            self.port.send(part)


@dataclass
class JoiningReceiver(Generic[ShardedMessage]):
    """Receives messages about several shards in parts: ``members`` are the shards of each."""

    port: Receiver[ShardedMessage]
    members: Iterator[list[Round]]

    def recv(self) -> ShardedMessage:
        shards = next(self.members)
        return join([copied(self.port.recv()) for _ in shards], joined(shards))  # valid until the next one


class NullSender:
    """A sender that drops its messages."""

    def send(self, message: Message) -> None:
        pass


def image_port(
    job: Job,
    images: ImageSet,
    device: torch.device,
    phases: Sequence[Phase] = ("train", "evaluate"),
    ahead: bool = True,
    passes: Passes = ONE_PASS,
) -> Receiver[Alpha]:
    """The images that the first block receives in ``phases``, on its device, one message for each of the own
    ``passes``. On a CPU a thread prefetches them if ``ahead``; a GPU augments them itself, in the block's stream."""
    config = job.config
    found = placed(images, config.gpu, device)
    source = ImageSource(found, job.rounds(*phases), config.seed, config.data.augment, device, passes)
    port = Prefetcher(source.recv, config.cpu_threads) if ahead and device.type == "cpu" else source
    return in_passes(port, passes)


def in_passes(port: Receiver[ShardedMessage], passes: Passes) -> Receiver[ShardedMessage]:
    """The receiver of the own passes of every batch, whose own images ``port`` receives."""
    return port if passes.num_shards == 1 else SplitReceiver[ShardedMessage](port, passes)


class SplitReceiver(Generic[ShardedMessage]):
    """A receiver of the own passes of every batch, whose own images ``port`` receives."""

    def __init__(self, port: Receiver[ShardedMessage], passes: Passes) -> None:
        self._port: Receiver[ShardedMessage] = port
        self._passes = passes
        self._ready: deque[ShardedMessage] = deque()

    def recv(self) -> ShardedMessage:
        if not self._ready:
            message = self._port.recv()
            self._ready.extend(split(message, [each for _, each in self._passes.own_of(message.round)]))
        return self._ready.popleft()


def ring_links(open_streams: OpenStreams, job: Job, device: torch.device) -> RingLinks:
    """A ring buffer for every edge, between the streams of ``device``."""
    channels_last = uses_channels_last(job.config, device)
    return RingLinks(open_streams(device), device, job.config.feedback.lag, channels_last)
