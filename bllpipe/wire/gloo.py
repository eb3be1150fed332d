"""Links between processes over gloo.

A gloo send completes only when its receive is posted, a message that does not fit kills the receiving process, and
waiting blocks signals. So every incoming edge has a thread that receives, first the header, then the payload into one
of a ring of buffers; and every outgoing edge has a thread that sees its sends off. The loop's own thread waits on
neither.
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
from bllpipe.wire.layout import HEADER_BYTES, Layout, message_of, tensors_of

CPU = torch.device("cpu")


class GlooSender:
    """Sends without waiting while fewer than ``in_flight`` messages are under way."""

    def __init__(self, layout: Layout, group: Any, in_flight: int, timeout: float) -> None:
        self._layout, self._group, self._timeout = layout, group, timeout
        self._tickets: Channel[None] = Channel(in_flight)
        self._under_way: Channel[tuple[list[Any], list[Tensor]]] = Channel(in_flight + 1)
        self._thread = threading.Thread(target=self._see_off, name=f"send {layout.edge}", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        tensors = tensors_of(message, self._layout, CPU)
        header = torch.frombuffer(bytearray(self._layout.header(message.round, tensors)), dtype=torch.uint8)
        parts = [header, self._layout.pack(tensors)]
        try:
            self._tickets.put(None, self._timeout)
            works = [dist.isend(part, self._layout.edge.dst, group=self._group) for part in parts]
        except TimeoutError:
            raise WireError(
                f"{self._layout}: {self._layout.roles[1]} took nothing for {self._timeout:g} s; "
                f"{self._layout.roles[0]} was at {message.round}"
            ) from None
        except RuntimeError as error:
            raise _gone(self._layout, self._layout.roles[1], str(message.round)) from error
        self._under_way.put((works, parts))

    def finish(self) -> None:
        """Waits until everything that was sent has left."""
        self._under_way.put(([], []))
        self._thread.join(self._timeout)

    def _see_off(self) -> None:
        try:
            while (item := self._under_way.get())[0]:
                for work in item[0]:
                    work.wait()
                self._tickets.get()
        except RuntimeError:
            gone = _gone(self._layout, self._layout.roles[1], "a message under way")
            self._tickets.close(gone)
            self._under_way.close(gone)


class GlooReceiver:
    """Receives ahead of the loop into a ring of buffers, in the order of the itinerary."""

    def __init__(
        self, layout: Layout, group: Any, rounds: Iterator[Round], device: torch.device, timeout: float
    ) -> None:
        self._layout, self._group, self._rounds = layout, group, rounds
        self._device, self._timeout = device, timeout
        self._free: Channel[Tensor] = Channel(layout.ring + 1)
        self._ready: Channel[tuple[Round, Tensor]] = Channel(layout.ring + 1)
        for _ in range(layout.ring):
            size = layout.payload_bytes(layout.max_batch)
            self._free.put(torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda"))
        self._held: Tensor | None = None
        self._thread = threading.Thread(target=self._receive, name=f"recv {layout.edge}", daemon=True)
        self._thread.start()

    def recv(self) -> Message:
        if self._held is not None:
            self._free.put(self._held)
            self._held = None
        try:
            entry, buffer = self._ready.get(self._timeout)
        except TimeoutError:
            raise WireError(
                f"{self._layout}: {self._layout.roles[1]} waited {self._timeout:g} s for a message from "
                f"{self._layout.roles[0]}; nothing came"
            ) from None
        self._held = buffer
        return message_of(entry, self._layout.views(buffer, entry.size), self._layout, self._device)

    def _receive(self) -> None:
        header = torch.empty(HEADER_BYTES, dtype=torch.uint8)
        for entry in self._rounds:
            try:
                self._receive_one(header, entry)
            except WireError as error:
                return self._ready.close(error)
            except RuntimeError:
                return self._ready.close(_gone(self._layout, self._layout.roles[0], str(entry)))

    def _receive_one(self, header: Tensor, entry: Round) -> None:
        self._fill(header)
        self._layout.check(bytes(header.numpy()), entry)
        buffer = self._free.get()
        self._fill(buffer[: self._layout.payload_bytes(entry.size)])
        self._ready.put((entry, buffer))

    def _fill(self, buffer: Tensor) -> None:
        work = dist.irecv(buffer, self._layout.edge.src, group=self._group)
        assert work is not None, "this rank is an end of the edge"
        work.wait()


def _gone(layout: Layout, peer: str, when: str) -> WireError:
    return WireError(f"{layout}: {peer} is gone at {when}: the connection was closed")
