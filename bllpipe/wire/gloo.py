"""Links between processes over gloo.

A gloo send completes only when its receive is posted, a message that does not fit kills the receiving process, and
waiting blocks signals. So every incoming edge has its receives posted ahead, into a ring of buffers, and a thread that
waits for them; and every outgoing edge has a thread that sees its sends off. The loop's own thread waits on neither.

A message is one send, as each costs some wake-ups of threads at both ends; and as its receive is posted already, it
leaves at once.
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
from bllpipe.wire.layout import HEADER_BYTES, Layout, message_of


class GlooSender:
    """Sends without waiting while fewer than ``in_flight`` messages are under way."""

    def __init__(self, layout: Layout, group: Any, in_flight: int, timeout: float, pinned: bool = False) -> None:
        self._layout, self._group, self._timeout = layout, group, timeout
        self._free: Channel[Tensor] = Channel(in_flight)
        self._under_way: Channel[tuple[Any, Tensor | None] | None] = Channel(in_flight + 2)
        for _ in range(in_flight):
            self._free.put(_buffer(layout, pinned))
        self._opening = torch.frombuffer(bytearray(layout.opening()), dtype=torch.uint8)
        self._send(self._opening, None, "the start")
        self._thread = threading.Thread(target=self._see_off, name=f"send {layout.edge}", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        try:
            buffer = self._free.get(self._timeout)
        except TimeoutError:
            raise WireError(
                f"{self._layout}: {self._layout.roles[1]} took nothing for {self._timeout:g} s; "
                f"{self._layout.roles[0]} was at {message.round}"
            ) from None
        self._send(self._layout.write(message, buffer), buffer, str(message.round))

    def finish(self) -> None:
        """Waits until everything that was sent has left."""
        self._under_way.put(None)
        self._thread.join(self._timeout)

    def _send(self, packed: Tensor, buffer: Tensor | None, when: str) -> None:
        """Starts a send; ``buffer`` is free again when it is done."""
        try:
            work = dist.isend(packed, self._layout.edge.dst, group=self._group)
        except RuntimeError as error:
            raise _gone(self._layout, self._layout.roles[1], when) from error
        self._under_way.put((work, buffer))

    def _see_off(self) -> None:
        try:
            while (item := self._under_way.get()) is not None:
                work, buffer = item
                work.wait()
                if buffer is not None:
                    self._free.put(buffer)
        except RuntimeError:
            gone = _gone(self._layout, self._layout.roles[1], "a message under way")
            self._free.close(gone)
            self._under_way.close(gone)


class GlooReceiver:
    """Receives ahead of the loop into a ring of buffers, in the order of the itinerary. A buffer is posted again when
    the loop asks for the message after its own."""

    def __init__(
        self, layout: Layout, group: Any, rounds: Iterator[Round], device: torch.device, timeout: float
    ) -> None:
        self._layout, self._group, self._rounds = layout, group, rounds
        self._device, self._timeout = device, timeout
        self._posted: Channel[tuple[Round | None, Tensor, Any] | None] = Channel(layout.ring + 2)
        self._ready: Channel[tuple[Round, Tensor]] = Channel(layout.ring + 1)
        self._held: Tensor | None = None
        self._post(None, torch.empty(HEADER_BYTES, dtype=torch.uint8))
        for _ in range(layout.ring):
            self._post_next(_buffer(layout, pinned=device.type == "cuda"))
        threading.Thread(target=self._receive, name=f"recv {layout.edge}", daemon=True).start()

    def recv(self) -> Message:
        if self._held is not None:
            self._post_next(self._held)
            self._held = None
        try:
            entry, buffer = self._ready.get(self._timeout)
        except TimeoutError:
            raise WireError(
                f"{self._layout}: {self._layout.roles[1]} waited {self._timeout:g} s for a message from "
                f"{self._layout.roles[0]}; nothing came"
            ) from None
        self._held = buffer
        return message_of(entry, self._layout.views(buffer[HEADER_BYTES:], entry.size), self._layout, self._device)

    def _post_next(self, buffer: Tensor) -> None:
        """Receives the next message of the itinerary into ``buffer``."""
        entry = next(self._rounds, None)
        if entry is None:
            self._posted.put(None)
        else:
            self._post(entry, buffer)

    def _post(self, entry: Round | None, buffer: Tensor) -> None:
        """Receives the message of a round, or the opening, into the front of ``buffer``."""
        expected = buffer if entry is None else buffer[: self._layout.message_bytes(entry.size)]
        try:
            work = dist.irecv(expected, self._layout.edge.src, group=self._group)
        except RuntimeError:  # what has come before is still to be taken
            self._ready.close(_gone(self._layout, self._layout.roles[0], str(entry or "the start")))
            return
        assert work is not None, "this rank is an end of the edge"
        self._posted.put((entry, buffer, work))

    def _receive(self) -> None:
        while (item := self._posted.get()) is not None:
            entry, buffer, work = item
            try:
                work.wait()
                self._layout.check(bytes(buffer[:HEADER_BYTES].numpy()), entry)
            except WireError as error:
                return self._ready.close(error)
            except RuntimeError:
                return self._ready.close(_gone(self._layout, self._layout.roles[0], str(entry or "the start")))
            if entry is not None:
                self._ready.put((entry, buffer))


def _buffer(layout: Layout, pinned: bool) -> Tensor:
    """Room for the largest message of an edge."""
    return torch.empty(layout.message_bytes(layout.max_batch), dtype=torch.uint8, pin_memory=pinned)


def _gone(layout: Layout, peer: str, when: str) -> WireError:
    return WireError(f"{layout}: {peer} is gone at {when}: the connection was closed")
