"""The layout of the messages on each edge of a job, and the timed ports of an actor."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol

import torch

from bllpipe.data.base import ImageSet
from bllpipe.data.loader import ImageSource, Prefetcher, placed
from bllpipe.distributed.cuda_streams import OpenStreams, RingLinks
from bllpipe.distributed.message_format import Layout, alpha_fields, stats_fields, target_fields
from bllpipe.engines.job import Job, JobStore
from bllpipe.learn.distributions import num_channels
from bllpipe.learn.memory_format import uses_channels_last
from bllpipe.messages import Alpha, Message, Phase, Receiver, Round, Sender, ShardedMessage, split
from bllpipe.topology import Edge
from bllpipe.training.timing import Metered, TimedReceiver, TimedSender


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
    shape = store.shape_of(edge.dst if edge.kind == "target" else edge.src)
    num_shards = job.topology.num_shards
    ring, received = num_shards * config.backend.ring, torch.float32
    match edge.kind:
        case "alpha":
            fields = alpha_fields(shape, job.alpha_dtype, num_classes if config.evaluate.ensemble else 0)
            if config.precision.compute == "bf16":
                received = job.alpha_dtype  # a block that computes in bf16 reads the message in place
        case "target":
            fields = target_fields(num_channels(shape))
        case "stats":
            fields = stats_fields(num_classes, num_channels(shape))
            # a block may be so many steps ahead of what its feedback absorbs
            ring = max(ring, num_shards * config.feedback.lag)
    roles = (job.topology.role(edge.src), job.topology.role(edge.dst))
    return Layout(edge, roles, fields, config.data.batch_size // num_shards, ring, received)


def rounds_of(job: Job, edge: Edge) -> Iterator[Round]:
    """The remaining rounds of messages on ``edge``, one for every shard: tests send no statistics."""
    rounds = job.rounds("train") if edge.kind == "stats" else job.rounds("train", "evaluate")
    return (shard for entry in rounds for shard in entry.shards(job.topology.num_shards))


class ActorPorts:
    """Opens the timed ports of one actor; ``opened`` is for its stopwatch."""

    def __init__(self, job: Job, store: JobStore, links: Links, wrap_port: PortWrapper) -> None:
        self._job, self._store, self._links, self._wrap_port = job, store, links, wrap_port
        self.opened: list[Metered] = []

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
) -> Receiver[Alpha]:
    """The images that the first block receives in ``phases``, on its device. On a CPU a thread prefetches them if
    ``ahead``; a GPU augments them itself, in the stream of the block."""
    config = job.config
    source = ImageSource(
        placed(images, config.gpu, device), job.rounds(*phases), config.seed, config.data.augment, device
    )
    port: Receiver[Alpha] = source
    if ahead and device.type == "cpu":
        port = Prefetcher(source.recv, config.cpu_threads)
    return sharded(port, job.topology.num_shards)


class SplitReceiver(Generic[ShardedMessage]):
    """A receiver of the shards of every message that ``port`` receives."""

    def __init__(self, port: Receiver[ShardedMessage], num_shards: int) -> None:
        self._port, self._num_shards = port, num_shards
        self._shards: deque[ShardedMessage] = deque()

    def recv(self) -> ShardedMessage:
        if not self._shards:
            self._shards.extend(split(self._port.recv(), self._num_shards))
        return self._shards.popleft()


def sharded(port: Receiver[ShardedMessage], num_shards: int) -> Receiver[ShardedMessage]:
    """``port``, or a receiver of its messages in shards."""
    return port if num_shards == 1 else SplitReceiver(port, num_shards)


def ring_links(open_streams: OpenStreams, job: Job, device: torch.device) -> RingLinks:
    """A ring buffer for every edge, between the streams of ``device``."""
    channels_last = uses_channels_last(job.config, device)
    return RingLinks(open_streams(device), device, job.config.feedback.lag, channels_last)
