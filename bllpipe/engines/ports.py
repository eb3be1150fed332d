"""The layout of the messages on each edge of a job, and the timed ports of an actor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from bllpipe.data.base import ImageSet
from bllpipe.data.loader import ImageSource, Prefetcher, placed
from bllpipe.distributed.cuda_streams import OpenStreams, RingWires
from bllpipe.distributed.message_format import Field, Layout, alpha_fields, stats_fields, target_fields
from bllpipe.engines.job import Job
from bllpipe.learn.distributions import num_channels
from bllpipe.learn.memory_format import uses_channels_last
from bllpipe.messages import Alpha, Message, Phase, Receiver, Round, Sender
from bllpipe.topology import Edge
from bllpipe.training.timing import Metered, TimedReceiver, TimedSender


class Wires(Protocol):
    """Opens the two ends of an edge: LocalWires, ProcessWires or RingWires."""

    def sender(self, layout: Layout) -> Sender[Any]: ...

    def receiver(self, layout: Layout, rounds: Iterator[Round]) -> Receiver[Any]: ...


class PortWrapper(Protocol):
    """Wraps the ports of actors; the tests delay messages with it."""

    def __call__(self, port: Any, edge: Edge) -> Any: ...


def identity(port: Any, edge: Edge) -> Any:
    """The port itself."""
    return port


def layout_of(job: Job, edge: Edge) -> Layout:
    """The layout of an edge, which both of its ends compute."""
    block = edge.src if edge.kind in ("alpha", "stats") else edge.dst
    ring = job.config.backend.ring
    if edge.kind == "stats":
        ring = max(
            ring, job.config.feedback.lag
        )  # feedback may be as many steps ahead of the statistics that it absorbs
    roles = (job.topology.role(edge.src), job.topology.role(edge.dst))
    fields, received = _fields(job, edge, job.store.shape_of(block)), torch.float32
    if edge.kind == "alpha" and job.config.precision.compute == "bf16":
        received = job.alpha_dtype  # a block that computes in bf16 reads the message in place
    return Layout(edge, roles, fields, job.config.data.batch_size, ring, received)


def _fields(job: Job, edge: Edge, shape: tuple[int, ...]) -> tuple[Field, ...]:
    if edge.kind == "alpha":
        return alpha_fields(shape, job.alpha_dtype, job.spec.num_classes if job.config.evaluate.ensemble else 0)
    channels = num_channels(shape)
    return target_fields(channels) if edge.kind == "target" else stats_fields(job.spec.num_classes, channels)


def rounds_of(job: Job, edge: Edge) -> Iterator[Round]:
    """The remaining rounds with a message on ``edge``: tests send no statistics."""
    return job.messages("train") if edge.kind == "stats" else job.messages("train", "evaluate")


class ActorPorts:
    """Opens the timed ports of one actor; ``opened`` is for its stopwatch."""

    def __init__(self, job: Job, wires: Wires, wrap_port: PortWrapper) -> None:
        self._job, self._wires, self._wrap_port = job, wires, wrap_port
        self.opened: list[Metered] = []

    def sender(self, edge: Edge | None) -> Sender[Any]:
        """The outgoing end of ``edge``; without an edge, what is sent is dropped (the last block's class scores)."""
        if edge is None:
            return NullSender()
        layout = layout_of(self._job, edge)
        sender = TimedSender(self._wrap_port(self._wires.sender(layout), edge), str(edge), layout.message_bytes)
        self.opened.append(sender)
        return sender

    def receiver(self, edge: Edge, rounds: Iterator[Round]) -> Receiver[Any]:
        """The incoming end of ``edge``."""
        port = self._wrap_port(self._wires.receiver(layout_of(self._job, edge), rounds), edge)
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
        placed(images, config.gpu, device), job.messages(*phases), config.seed, config.data.augment, device
    )
    return Prefetcher(source.recv, config.cpu_threads) if ahead and device.type == "cpu" else source


def ring_wires(open_streams: OpenStreams, job: Job, device: torch.device) -> RingWires:
    """A ring buffer for every edge, between the streams of ``device``."""
    channels_last = uses_channels_last(job.config, device)
    return RingWires(open_streams(device), device, job.config.feedback.lag, channels_last)
