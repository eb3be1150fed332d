"""Links between processes over gloo, and the buffers of their messages.

A gloo send completes only when its receive is posted, a message that does not fit kills the receiving process, and
waiting blocks signals. So every outgoing edge has a thread that sends, and every incoming one a thread that receives
ahead of the loop. The loop's own thread only fills and empties buffers, which are used again and again.

A message is one send, from header to trailer, as each send costs some wake-ups of threads at both ends. Both ends have
agreed on its format before (distributed/process_links.py).

What lies on a GPU goes through pinned buffers. The loop's thread only queues the copies; the threads beside it wait for
them: the one that sends until its buffer is written, the one that receives until its buffer has been read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from bllpipe.distributed.cuda_streams import DONE, Event, OpenStreams, streams_on
from bllpipe.distributed.local_links import Channel
from bllpipe.distributed.message_format import (
    CLOSING_BYTES,
    HEADER_BYTES,
    LIMIT,
    Layout,
    copy_into,
    message_of,
    parts_of,
)
from bllpipe.errors import WireError
from bllpipe.messages import Message, Round

CPU = torch.device("cpu")


class GlooSender:
    """Sends without waiting while fewer than ``in_flight`` messages are under way."""

    def __init__(
        self,
        layout: Layout,
        group: Any,
        in_flight: int,
        timeout: float,
        device: torch.device = CPU,
        open_streams: OpenStreams = streams_on,
    ) -> None:
        self._layout, self._group, self._in_flight, self._timeout = layout, group, in_flight, timeout
        self._streams = open_streams(device)
        self._free: Channel[MessageBuffer] = Channel(in_flight)
        self._full: Channel[tuple[MessageBuffer, Round, Event] | None] = Channel(in_flight + 1)
        for _ in range(in_flight):
            self._free.put(MessageBuffer(layout, pinned=device.type == "cuda"))
        self._thread = threading.Thread(target=self._send_all, name=f"send {layout.edge}", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        try:
            packet = self._free.get(self._timeout)
        except TimeoutError:
            raise WireError(
                f"{self._layout}: {self._layout.roles[1]} took nothing for {self._timeout:g} s; "
                f"{self._layout.roles[0]} was at {message.round}"
            ) from None
        packet.write(message)
        self._full.put((packet, message.round, self._streams.current().record()))

    @property
    def queued(self) -> int:
        """Messages that have not left yet."""
        return self._in_flight - len(self._free)

    def finish(self) -> None:
        """Waits until everything that was sent has left."""
        self._full.put(None)
        self._thread.join(self._timeout)

    def _send_all(self) -> None:
        when = "the start"
        try:
            while (item := self._full.get()) is not None:
                packet, entry, written = item
                when = str(entry)
                written.synchronize()
                self._send(packet.whole(entry))
                self._free.put(packet)
        except RuntimeError:
            gone = _gone(self._layout, self._layout.roles[1], when)
            self._free.close(gone)
            self._full.close(gone)

    def _send(self, whole: Tensor) -> None:
        work = dist.isend(whole, self._layout.edge.dst, group=self._group)
        assert work is not None, "this rank is an end of the edge"
        work.wait()


class GlooReceiver:
    """Receives ahead of the loop into a ring of packets, in the order of the itinerary."""

    def __init__(
        self,
        layout: Layout,
        group: Any,
        rounds: Iterator[Round],
        device: torch.device,
        timeout: float,
        open_streams: OpenStreams = streams_on,
    ) -> None:
        self._layout, self._group, self._rounds = layout, group, rounds
        self._device, self._timeout, self._streams = device, timeout, open_streams(device)
        self._free: Channel[tuple[MessageBuffer, Event]] = Channel(layout.ring)
        self._ready: Channel[tuple[Round, MessageBuffer]] = Channel(layout.ring)
        for _ in range(layout.ring):
            self._free.put((MessageBuffer(layout, pinned=device.type == "cuda"), DONE))
        self._held: MessageBuffer | None = None
        threading.Thread(target=self._receive_all, name=f"recv {layout.edge}", daemon=True).start()

    def recv(self) -> Message:
        if self._held is not None:
            self._free.put((self._held, self._streams.current().record()))
            self._held = None
        try:
            entry, self._held = self._ready.get(self._timeout)
        except TimeoutError:
            raise WireError(
                f"{self._layout}: {self._layout.roles[1]} waited {self._timeout:g} s for a message from "
                f"{self._layout.roles[0]}; nothing came"
            ) from None
        return self._held.read(entry, self._device)

    @property
    def queued(self) -> int:
        """Messages that have come and nobody has taken yet."""
        return len(self._ready)

    def _receive_all(self) -> None:
        when = "the start"
        try:
            for entry in self._rounds:
                when, (packet, read) = str(entry), self._free.get()
                read.synchronize()
                self._receive(packet.room)
                packet.check(entry)
                self._ready.put((entry, packet))
        except WireError as error:
            self._ready.close(error)
        except RuntimeError:
            self._ready.close(_gone(self._layout, self._layout.roles[0], when))

    def _receive(self, room: Tensor) -> None:
        work = dist.irecv(room, self._layout.edge.src, group=self._group)
        assert work is not None, "this rank is an end of the edge"
        work.wait()


def _gone(layout: Layout, peer: str, when: str) -> WireError:
    return WireError(f"{layout}: {peer} is gone at {when}: the connection was closed")


class _Views(NamedTuple):
    """Where things lie in a message of a certain phase about a certain number of images."""

    whole: Tensor
    parts: list[Tensor]
    trailer: memoryview


class MessageBuffer:
    """Room for the largest message of an edge. A message's views into it are made once for every phase and size."""

    def __init__(self, layout: Layout, pinned: bool = False) -> None:
        self._layout = layout
        self._buffer = torch.empty(layout.message_bytes(layout.max_batch, LIMIT), dtype=torch.uint8, pin_memory=pinned)
        self._bytes = self._buffer.numpy().data
        self._header = self._bytes[:HEADER_BYTES]
        self._views: dict[tuple[int, str], _Views] = {}

    @property
    def room(self) -> Tensor:
        """All of it, uint8: a message of another size than expected must not be too long to be received."""
        return self._buffer

    def whole(self, entry: Round) -> Tensor:
        """The bytes of the message of this round, uint8."""
        return self._viewed(entry).whole

    def write(self, message: Message) -> Tensor:
        """Puts the message in, converted to the wire's formats; its bytes. Raises WireError for other shapes."""
        self._layout.check_shapes(message)
        views, header = self._viewed(message.round), self._layout.expected_header(message.round)
        self._header[:] = header
        for part, view in zip(parts_of(message), views.parts, strict=True):
            copy_into(part, view)
        views.trailer[:] = header[:CLOSING_BYTES]
        return views.whole

    def check(self, entry: Round) -> None:
        """Raises WireError unless what lies here is the message of this round, and all of it."""
        self._layout.check(bytes(self._header), bytes(self._viewed(entry).trailer), entry)

    def read(self, entry: Round, device: torch.device) -> Message:
        """The message of this round on ``device``; on a CPU its tensors are views, if their format needs no change."""
        return message_of(entry, self._viewed(entry).parts, self._layout, device)

    def _viewed(self, entry: Round) -> _Views:
        form = entry.size, entry.phase
        if form not in self._views:
            end = self._layout.message_bytes(*form)
            parts = self._layout.views(self._buffer[HEADER_BYTES:], *form)
            self._views[form] = _Views(self._buffer[:end], parts, self._bytes[end - CLOSING_BYTES : end])
        return self._views[form]
