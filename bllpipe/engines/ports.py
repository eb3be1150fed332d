"""The layout of the messages on each edge of a job, and the timed ports of an actor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn

from bllpipe.data.base import ImageSet
from bllpipe.data.loader import ImageSource, Prefetcher, placed
from bllpipe.distributed.cuda_streams import OpenStreams, RingLinks
from bllpipe.distributed.message_format import Layout, alpha_fields, stats_fields, target_fields
from bllpipe.engines.job import Job, JobStore
from bllpipe.learn.heads import make_head, message_size
from bllpipe.learn.memory_format import uses_channels_last
from bllpipe.messages import Alpha, Message, Phase, Receiver, Round, Sender
from bllpipe.models.partition import cut
from bllpipe.models.registry import last_width, network_units, units_after
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
    block = edge.dst if edge.kind == "target" else edge.src
    shape = store.shape_of(block)
    ring, received = config.backend.ring, torch.float32
    match edge.kind:
        case "alpha":
            fields = alpha_fields(shape, job.alpha_dtype, num_classes if config.evaluate.ensemble else 0)
            if config.precision.compute == "bf16":
                received = job.alpha_dtype  # a block that computes in bf16 reads the message in place
        case "target":
            fields = target_fields(message_size_of(job, store, block))
        case "stats":
            fields = stats_fields(num_classes, message_size_of(job, store, block))
            ring = max(ring, config.feedback.lag)  # a block may be so many steps ahead of what its feedback absorbs
    roles = (job.topology.role(edge.src), job.topology.role(edge.dst))
    return Layout(edge, roles, fields, config.data.batch_size, ring, received)


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
    """The remaining rounds with a message on ``edge``: tests send no statistics."""
    return job.rounds("train") if edge.kind == "stats" else job.rounds("train", "evaluate")


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
    return Prefetcher(source.recv, config.cpu_threads) if ahead and device.type == "cpu" else source


def ring_links(open_streams: OpenStreams, job: Job, device: torch.device) -> RingLinks:
    """A ring buffer for every edge, between the streams of ``device``."""
    channels_last = uses_channels_last(job.config, device)
    return RingLinks(open_streams(device), device, job.config.feedback.lag, channels_last)
