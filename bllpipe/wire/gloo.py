"""Links between processes over gloo.

A gloo send completes only when its receive is posted, a message that does not fit kills the receiving process, and
waiting blocks signals. So every outgoing edge has a thread that sends, and every incoming one a thread that receives
ahead of the loop. The loop's own thread only fills and empties packets, which go round between the two.

A message is one send, as each costs some wake-ups of threads at both ends. What it is to be the two ends have agreed on
before (handshake.py).

What lies on a GPU goes through pinned packets. The loop's thread only queues the copies; the threads beside it wait for
them: the one that sends until its packet is written, the one that receives until its packet has been read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bllpipe.errors import WireError
from bllpipe.ports import Message, Round
from bllpipe.wire.channel import Channel
from bllpipe.wire.layout import Layout
from bllpipe.wire.packet import Packet
from bllpipe.wire.streams import DONE, Event, OpenStreams, streams_on

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
        self._free: Channel[Packet] = Channel(in_flight)
        self._full: Channel[tuple[Packet, Round, Event] | None] = Channel(in_flight + 1)
        for _ in range(in_flight):
            self._free.put(Packet(layout, pinned=device.type == "cuda"))
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
        self._free: Channel[tuple[Packet, Event]] = Channel(layout.ring)
        self._ready: Channel[tuple[Round, Packet]] = Channel(layout.ring)
        for _ in range(layout.ring):
            self._free.put((Packet(layout, pinned=device.type == "cuda"), DONE))
        self._held: Packet | None = None
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
