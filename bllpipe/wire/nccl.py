"""Links between distinct GPUs over NCCL.

NCCL runs on the GPU's own time: nothing here waits on the host but the bound on sends under way. It carries no
header, since reading one would mean to wait for it; the itinerary alone says what comes. Every edge has a stream of
high priority, and receives are posted ahead into a short ring, because a posted receive occupies the GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bllpipe.ports import Message, Round
from bllpipe.wire.layout import Layout, message_of, tensors_of


class NcclSender:
    """Queues each send behind the computation that made the tensor; at most ``in_flight`` are under way."""

    def __init__(self, layout: Layout, group: Any, in_flight: int, device: torch.device) -> None:
        self._layout, self._group, self._in_flight, self._device = layout, group, in_flight, device
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._under_way: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def send(self, message: Message) -> None:
        if len(self._under_way) >= self._in_flight:
            self._under_way.popleft()[1].synchronize()
        payload = self._layout.pack(tensors_of(message, self._layout, self._device))
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            work = dist.isend(payload, self._layout.edge.dst, group=self._group)
            assert work is not None, "this rank is an end of the edge"
            work.wait()  # makes the stream wait, not the host
            done = torch.cuda.Event()
            done.record(self._stream)
        self._under_way.append((payload, done))

    def finish(self) -> None:
        """Waits until everything that was sent has left."""
        while self._under_way:
            self._under_way.popleft()[1].synchronize()


class NcclReceiver:
    """Keeps a ring of receives posted; a buffer is posted again when the loop asks for the message after its own."""

    def __init__(self, layout: Layout, group: Any, rounds: Iterator[Round], device: torch.device) -> None:
        self._layout, self._group, self._rounds, self._device = layout, group, rounds, device
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._posted: deque[tuple[Round, Tensor, Any]] = deque()
        self._held: Tensor | None = None
        for _ in range(layout.ring):
            self._post(torch.empty(layout.payload_bytes(layout.max_batch), dtype=torch.uint8, device=device))

    def recv(self) -> Message:
        if self._held is not None:
            self._post(self._held)
        entry, buffer, work = self._posted.popleft()
        work.wait()  # makes the computation's stream wait, not the host
        self._held = buffer
        return message_of(entry, self._layout.views(buffer, entry.size), self._layout, self._device)

    def _post(self, buffer: Tensor) -> None:
        """Receives the next message into ``buffer`` once all computation queued so far has read it."""
        entry = next(self._rounds, None)
        if entry is None:
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            payload = buffer[: self._layout.payload_bytes(entry.size)]
            work = dist.irecv(payload, self._layout.edge.src, group=self._group)
        self._posted.append((entry, buffer, work))
