"""Streams and events of a device, and the ring buffers between its streams, into which messages are copied.

    sender's stream      wait free | copy into the slot, in the link's dtype | record full
    receiver's stream                              wait full | read | ... | next message: record free

A device runs the work of one stream in order, and that of several streams concurrently. The host queues all of this in
one thread and never waits. Slots are at fixed addresses, so a captured step finds its input in the same few buffers
again and again, and no memory moves between the allocator pools of streams. A CPU has no queues: a call returns when
its work is done, so its streams have nothing to wait for.

A graph may copy the messages of many edges at once (engines/streams_graph.py). Then rings still keep track of the
contents of their slots, but queue nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bllpipe.distributed.message_format import LIMIT, Layout, copy_into, message_of
from bllpipe.messages import Message, Round
from bllpipe.topology import Edge

PLACEHOLDER = torch.empty(0)  # for a tensor that only a graph copies and reads


class Event(Protocol):
    """A mark in a stream."""

    def synchronize(self) -> None:
        """Waits, on the host, until the device has reached the mark."""


class Stream(Protocol):
    """One queue of a device."""

    def at_work(self) -> AbstractContextManager[Any]:
        """Work that this thread starts inside is queued here."""

    def record(self) -> Event:
        """A mark after everything that is queued here so far."""

    def wait(self, event: Event) -> None:
        """Work that is queued here from now on starts after ``event``; the host does not wait."""


class Streams(Protocol):
    """The queues of one device."""

    def open(self, name: str) -> Stream:
        """A new queue; ``name`` is for debugging."""

    def current(self) -> Stream:
        """The current queue of this thread."""

    def synchronize(self) -> None:
        """Waits, on the host, until the device has finished all work."""


OpenStreams = Callable[[torch.device], Streams]


class _Done:
    """The mark of a CPU, where all work is done already."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


DONE = _Done()


class HostStreams:
    """A CPU: one stream, which runs its work at once."""

    def open(self, name: str) -> HostStreams:
        return self

    def current(self) -> HostStreams:
        return self

    def at_work(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self) -> Event:
        return DONE

    def wait(self, event: Event) -> None:
        """All work before is done."""

    def synchronize(self) -> None:
        """All work is done."""


class CudaStream:
    """A stream of a GPU."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def at_work(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream)

    def record(self) -> Event:
        mark: Event = self._stream.record_event(torch.cuda.Event(blocking=True))  # a waiting thread sleeps
        return mark

    def wait(self, event: Event) -> None:
        assert isinstance(event, torch.cuda.Event), "a GPU's streams wait for its own events"
        self._stream.wait_event(event)


class CudaStreams:
    """The streams of a GPU. New streams have the ``priority``; negative is high."""

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self._device, self._priority = device, priority

    def open(self, name: str) -> CudaStream:
        return CudaStream(torch.cuda.Stream(self._device, priority=self._priority))

    def current(self) -> CudaStream:
        return CudaStream(torch.cuda.current_stream(self._device))

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)


def streams_on(device: torch.device) -> Streams:
    """The streams of ``device``."""
    return CudaStreams(device) if device.type == "cuda" else HostStreams()


@dataclass
class Slot:
    """The buffer of one message. ``full`` is recorded after the write, ``free`` after the last read; a slot that was
    never used has neither."""

    tensors: list[Tensor]
    header: bytes = b""
    full: Event | None = None
    free: Event | None = None


class RingBuffer:
    """The ring buffer between two streams: the slots of one edge, filled in turn and emptied in turn."""

    def __init__(
        self, layout: Layout, num_slots: int, streams: Streams, device: torch.device, channels_last: bool = False
    ) -> None:
        self.layout, self.streams, self.device = layout, streams, device
        self._slots = [Slot(_buffers(layout, device, channels_last)) for _ in range(num_slots)]
        self._filled = self._taken = 0
        self._reading: Slot | None = None
        self.graph_event: Event | None = None  # after a graph that copies the messages, while there is one

    def fill(self, message: Message) -> None:
        """Queues the copy of ``message`` into the next slot, after the last read of its previous message."""
        slot = self._slots[self._filled % len(self._slots)]
        assert slot.full is None, f"{self.layout}: the schedule sends into a slot that was not read yet"
        slot.full, slot.free = self.graph_event or self._copy(message, slot), None
        slot.header = self.layout.expected_header(message.round)
        self._filled += 1

    def _copy(self, message: Message, slot: Slot) -> Event:
        self.layout.check_shapes(message)
        stream = self.streams.current()
        if slot.free is not None:
            stream.wait(slot.free)
        parts = self.layout.sent_parts(message)
        for buffer, part in zip(slot.tensors, parts, strict=False):  # smaller messages fill a part of it
            copy_into(part, buffer[: len(part)])
        return stream.record()

    def take(self, entry: Round) -> Message:
        """The message of ``entry``, to be read on the current stream; releases the one before it."""
        self.release()
        slot = self._slots[self._taken % len(self._slots)]
        assert slot.full is not None, f"{self.layout}: the schedule asks for {entry} before it is sent"
        self.layout.compare(slot.header, self.layout.expected_header(entry))
        self._reading, self._taken = slot, self._taken + 1
        if self.graph_event is not None:
            placeholders = [PLACEHOLDER] * len(self.layout.fields_in(entry.phase))
            return message_of(entry, placeholders, self.layout, PLACEHOLDER.device)
        self.streams.current().wait(slot.full)
        views = zip(slot.tensors, self.layout.shapes(entry.size, entry.phase), strict=False)
        return message_of(entry, [buffer[: shape[0]] for buffer, (_, shape) in views], self.layout, self.device)

    def release(self) -> None:
        """Frees the slot of the last message after the work that is queued on the current stream so far."""
        if self._reading is not None:
            self._reading.full, self._reading.free = None, self.graph_event or self.streams.current().record()
            self._reading = None

    @property
    def position(self) -> tuple[int, int]:
        """The next slot to fill, and the next one to read."""
        return self._filled % len(self._slots), self._taken % len(self._slots)

    def rebase_events(self, event: Event) -> None:
        """``event`` comes after all work that was queued for this edge, and replaces the events of its slots."""
        for slot in self._slots:
            slot.full = event if slot.full is not None else None
            slot.free = event if slot.free is not None else None


@dataclass(frozen=True)
class RingSender:
    """The near end of an outgoing edge."""

    ring: RingBuffer

    def send(self, message: Message) -> None:
        self.ring.fill(message)


@dataclass(frozen=True)
class RingReceiver:
    """The near end of an incoming edge, for the messages of ``rounds``."""

    ring: RingBuffer
    rounds: Iterator[Round]

    def recv(self) -> Message:
        return self.ring.take(next(self.rounds))


class RingLinks:
    """One ring buffer an edge, as deep as the wavefront needs: one slot is read while the next one is filled, and
    statistics wait for the ``lag`` of the feedback. ``channels_last`` is the memory format of activations."""

    def __init__(self, streams: Streams, device: torch.device, lag: int, channels_last: bool = False) -> None:
        self._rings: dict[Edge, RingBuffer] = {}
        self.streams, self.device, self._lag, self._channels_last = streams, device, lag, channels_last

    def sender(self, layout: Layout) -> RingSender:
        """The outgoing end of the layout's edge."""
        return RingSender(self._ring(layout))

    def receiver(self, layout: Layout, rounds: Iterator[Round]) -> RingReceiver:
        """The incoming end of the layout's edge, for the messages of ``rounds``."""
        return RingReceiver(self._ring(layout), rounds)

    @property
    def positions(self) -> tuple[tuple[int, int], ...]:
        """The next slots of every edge: a graph that copies messages is valid for one such state."""
        return tuple(ring.position for ring in self._rings.values())

    def rebase_events(self, event: Event) -> None:
        """``event`` comes after all work that was queued for any edge, and replaces the events of all slots."""
        for ring in self._rings.values():
            ring.rebase_events(event)

    @contextmanager
    def moved_by_graph(self, event: Event) -> Iterator[None]:
        """A graph before ``event`` has copied the messages that are sent and received inside: only slots change."""
        for ring in self._rings.values():
            ring.graph_event = event
        try:
            yield
        finally:
            for ring in self._rings.values():
                ring.graph_event = None

    def _ring(self, layout: Layout) -> RingBuffer:
        if layout.edge not in self._rings:
            num_slots = self._lag + 1 if layout.edge.kind == "stats" else 2
            self._rings[layout.edge] = RingBuffer(layout, num_slots, self.streams, self.device, self._channels_last)
        return self._rings[layout.edge]


def _buffers(layout: Layout, device: torch.device, channels_last: bool) -> list[Tensor]:
    shapes = layout.shapes(layout.max_batch, LIMIT)
    buffers = [torch.empty(shape, dtype=dtype, device=device) for dtype, shape in shapes]
    last = torch.channels_last
    return [each.to(memory_format=last) if channels_last and each.dim() == 4 else each for each in buffers]
