"""Streams and events of a device, and links between its streams: rings of buffers, into which messages are copied.

    sender's stream      wait free | copy into the slot, in the wire's format | record full
    receiver's stream                              wait full | read | ... | next message: record free

A device does what is queued on one stream in order, and what is queued on several side by side. The host queues all of
this in one thread and waits for nothing. Slots stay where they are, so a captured step finds its input at the same few
places again and again, and no memory goes from one stream to another. A CPU has no queues: a call returns when its work
is done, so its streams have nothing to wait for.

A graph may move the messages of many edges at once (engines/streams_graph.py). Then rings keep track of which slot
holds what, as ever, but queue nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bllpipe.distributed.message_format import LIMIT, Layout, copy_into, message_of, parts_of
from bllpipe.messages import Alpha, Message, Round, Stats, Target
from bllpipe.topology import Edge

PLACEHOLDER = torch.empty(0)  # stands for a tensor that a graph moves


class Event(Protocol):
    """A mark in a stream."""

    def synchronize(self) -> None:
        """Waits, on the host, until the device has come to the mark."""


class Stream(Protocol):
    """One queue of a device."""

    def at_work(self) -> AbstractContextManager[Any]:
        """Whatever this thread asks for inside is queued here."""

    def record(self) -> Event:
        """A mark behind everything that is queued here so far."""

    def wait(self, event: Event) -> None:
        """What is queued here from now on begins behind ``event``; the host does not wait."""


class Streams(Protocol):
    """The queues of one device."""

    def open(self, name: str) -> Stream:
        """A new queue; ``name`` is for whoever looks at it."""

    def current(self) -> Stream:
        """The queue that this thread uses now."""

    def synchronize(self) -> None:
        """Waits, on the host, until the device has done everything."""


OpenStreams = Callable[[torch.device], Streams]


class _Done:
    """The mark of a CPU, which has done everything already."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


DONE = _Done()


class HostStreams:
    """A CPU: one stream, and that does at once what it is told."""

    def open(self, name: str) -> HostStreams:
        return self

    def current(self) -> HostStreams:
        return self

    def at_work(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self) -> Event:
        return DONE

    def wait(self, event: Event) -> None:
        """Everything before has been done."""

    def synchronize(self) -> None:
        """So has this."""


class CudaStream:
    """A stream of a GPU."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def at_work(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream)

    def record(self) -> Event:
        mark: Event = self._stream.record_event(torch.cuda.Event(blocking=True))  # whoever waits sleeps
        return mark

    def wait(self, event: Event) -> None:
        assert isinstance(event, torch.cuda.Event), "a GPU's streams wait for its own events"
        self._stream.wait_event(event)


class CudaStreams:
    """The streams of a GPU. Those that are opened are of high ``priority`` if it is negative."""

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
    """Room for one message. ``full`` is behind its writing, ``free`` behind its last reading; one of them is there,
    neither in a slot that was never used."""

    tensors: list[Tensor]
    header: bytes = b""
    full: Event | None = None
    free: Event | None = None

    def rebase_events(self, event: Event) -> None:
        """``event`` is behind whatever this slot had to wait for."""
        self.full = event if self.full is not None else None
        self.free = event if self.free is not None else None


class Ring:
    """The slots of one edge, filled in turn and emptied in turn."""

    def __init__(
        self, layout: Layout, num_slots: int, streams: Streams, device: torch.device, channels_last: bool = False
    ) -> None:
        self.layout, self.streams, self.device = layout, streams, device
        self._slots = [Slot(_room(layout, device, channels_last)) for _ in range(num_slots)]
        self._filled = self._taken = 0
        self._held: Slot | None = None
        self.behind_graph: Event | None = None  # behind a graph that moves the messages, while there is one

    def fill(self, message: Message) -> None:
        """Queues the copy of ``message`` into the next slot, behind the last reading of what was there."""
        slot = self._slots[self._filled % len(self._slots)]
        assert slot.full is None, f"{self.layout}: the schedule sends into a slot that is still to be read"
        slot.full, slot.free = self.behind_graph or self._put(message, slot), None
        slot.header = self.layout.expected_header(message.round)
        self._filled += 1

    def _put(self, message: Message, slot: Slot) -> Event:
        """A mark behind the copy."""
        self.layout.check_shapes(message)
        stream = self.streams.current()
        if slot.free is not None:
            stream.wait(slot.free)
        for room, part in zip(slot.tensors, parts_of(message), strict=False):  # some need not all of the room
            copy_into(part, room[: len(part)])
        return stream.record()

    def take(self, entry: Round) -> Message:
        """The message of ``entry``, to be read on the current stream; gives the one before it back."""
        self.give_back()
        slot = self._slots[self._taken % len(self._slots)]
        assert slot.full is not None, f"{self.layout}: the schedule asks for {entry} before it is sent"
        self.layout.compare(slot.header, self.layout.expected_header(entry))
        self._held, self._taken = slot, self._taken + 1
        if self.behind_graph is not None:
            return _moved(entry, self.layout)
        self.streams.current().wait(slot.full)
        views = zip(slot.tensors, self.layout.shapes(entry.size, entry.phase), strict=False)
        return message_of(entry, [room[: shape[0]] for room, (_, shape) in views], self.layout, self.device)

    def give_back(self) -> None:
        """Everything queued so far on the current stream may still read the message that was taken; nothing later."""
        if self._held is not None:
            self._held.full, self._held.free = None, self.behind_graph or self.streams.current().record()
            self._held = None

    @property
    def position(self) -> tuple[int, int]:
        """Which slot is filled next, and which one is taken."""
        return self._filled % len(self._slots), self._taken % len(self._slots)

    def rebase_events(self, event: Event) -> None:
        """``event`` is behind whatever was queued for this edge."""
        for slot in self._slots:
            slot.rebase_events(event)


@dataclass(frozen=True)
class RingSender:
    """The near end of an outgoing edge."""

    ring: Ring

    def send(self, message: Message) -> None:
        self.ring.fill(message)


@dataclass(frozen=True)
class RingReceiver:
    """The near end of an incoming edge, for the messages of ``rounds``."""

    ring: Ring
    rounds: Iterator[Round]

    def recv(self) -> Message:
        return self.ring.take(next(self.rounds))


class RingWires:
    """A ring an edge, as deep as the wavefront needs: one slot is read while the next one is filled, and statistics
    wait for as many steps as the feedback lags behind. Activations lie as ``channels_last`` says."""

    def __init__(self, streams: Streams, device: torch.device, lag: int, channels_last: bool = False) -> None:
        self._rings: dict[Edge, Ring] = {}
        self.streams, self.device, self._lag, self._channels_last = streams, device, lag, channels_last

    def sender(self, layout: Layout) -> RingSender:
        """The outgoing end of the layout's edge."""
        return RingSender(self._ring(layout))

    def receiver(self, layout: Layout, rounds: Iterator[Round]) -> RingReceiver:
        """The incoming end of the layout's edge, for the messages of ``rounds``."""
        return RingReceiver(self._ring(layout), rounds)

    @property
    def positions(self) -> tuple[tuple[int, int], ...]:
        """Which slots are next, on every edge: a graph that moves messages is right for one such state."""
        return tuple(ring.position for ring in self._rings.values())

    def rebase_events(self, event: Event) -> None:
        """``event`` is behind whatever was queued for any edge, and is waited for in place of all others."""
        for ring in self._rings.values():
            ring.rebase_events(event)

    @contextmanager
    def moved_by_graph(self, behind: Event) -> Iterator[None]:
        """What is sent and received inside has been moved already, in front of ``behind``: only books are kept."""
        for ring in self._rings.values():
            ring.behind_graph = behind
        try:
            yield
        finally:
            for ring in self._rings.values():
                ring.behind_graph = None

    def _ring(self, layout: Layout) -> Ring:
        if layout.edge not in self._rings:
            num_slots = self._lag + 1 if layout.edge.kind == "stats" else 2
            self._rings[layout.edge] = Ring(layout, num_slots, self.streams, self.device, self._channels_last)
        return self._rings[layout.edge]


def _room(layout: Layout, device: torch.device, channels_last: bool) -> list[Tensor]:
    """Room for the largest message."""
    shapes = layout.shapes(layout.max_batch, LIMIT)
    rooms = [torch.empty(shape, dtype=dtype, device=device) for dtype, shape in shapes]
    last = torch.channels_last
    return [room.to(memory_format=last) if channels_last and room.dim() == 4 else room for room in rooms]


def _moved(entry: Round, layout: Layout) -> Message:
    """A message that a graph has read, and nobody else will."""
    match layout.edge.kind:
        case "alpha":
            return Alpha(entry, PLACEHOLDER)
        case "target":
            return Target(entry, PLACEHOLDER, PLACEHOLDER, PLACEHOLDER)
        case "stats":
            return Stats(entry, PLACEHOLDER, PLACEHOLDER)
