"""Links between distinct GPUs over NCCL.

NCCL is asynchronous: nothing here waits on the host except for the limit of sends in flight. Messages have no header,
since reading one would synchronize; the run schedule alone determines the next message. Messages are copied into ring
buffers, in the dtypes of the layout: a captured step may overwrite its activations while the last ones are being sent.

    compute stream       forward | copy into a free buffer | record written | loss, backward, update ...
    stream of the edge                          wait written | send | record sent

Receives are posted ahead into a short ring, because a posted receive occupies the GPU. A run that is stopped ends
before messages for which receives are posted already; such a receive would never complete, and the group cannot be
closed before it does. So after its last round every sender fills the rest of the ring with blank messages: those of
the next rounds, which the receiver drops.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bllpipe.distributed.cuda_streams import DONE, CudaStreams, Event, HostStreams, Streams
from bllpipe.distributed.message_format import LIMIT, Layout, copy_into, message_of
from bllpipe.messages import Message, Round

HIGH_PRIORITY = -1  # of the edges' streams: messages go before queued computations


class NcclSender:
    """Queues each send after the computation of its tensor; at most ``in_flight`` are in flight."""

    def __init__(self, layout: Layout, group: Any, in_flight: int, device: torch.device) -> None:
        self._layout, self._group, self._streams = layout, group, _streams_on(device)
        self._stream = self._streams.open(f"send {layout.edge}")
        self._num_sent = 0
        self._free: deque[tuple[Tensor, Event]] = deque((_buffer(layout, device), DONE) for _ in range(in_flight))

    def send(self, message: Message) -> None:
        self._layout.check_shapes(message)
        buffer, entry = self._next_buffer(), message.round
        views = self._layout.views(buffer, entry.size, entry.phase)
        for part, view in zip(self._layout.sent_parts(message), views, strict=True):
            copy_into(part, view)
        self._stream.wait(self._streams.current().record())
        self._send(buffer, entry)
        self._num_sent += 1

    def end(self, rounds: Iterator[Round]) -> None:
        """Ends the edge: fills the rest of the ring. ``rounds`` are all rounds of the edge, from the first one."""
        for entry in islice(rounds, self._num_sent, self._num_sent + self._layout.ring):
            self._send(self._next_buffer(), entry)

    def _next_buffer(self) -> Tensor:
        buffer, sent = self._free.popleft()
        sent.synchronize()
        return buffer

    def _send(self, buffer: Tensor, entry: Round) -> None:
        """Queues the send of a message of this round; its buffer is free after that."""
        payload = buffer[: self._layout.payload_bytes(entry.size, entry.phase)]
        with self._stream.at_work():
            work = dist.isend(payload, self._layout.edge.dst, group=self._group)
            assert work is not None, "this rank is an end of the edge"
            work.wait()  # makes the stream wait, not the host
        self._free.append((buffer, self._stream.record()))

    def finish(self) -> None:
        """Waits until all messages are sent."""
        for _, sent in self._free:
            sent.synchronize()


class NcclReceiver:
    """Keeps a ring of receives posted; a buffer is posted again when the loop receives the next message."""

    def __init__(self, layout: Layout, group: Any, rounds: Iterator[Round], device: torch.device) -> None:
        self._layout, self._group, self._rounds, self._device = layout, group, rounds, device
        self._streams = _streams_on(device)
        self._stream = self._streams.open(f"recv {layout.edge}")
        self._posted: deque[tuple[Round, Tensor, Any]] = deque()
        self._reading: Tensor | None = None
        for _ in range(layout.ring):
            self._post(_buffer(layout, device))

    def recv(self) -> Message:
        if self._reading is not None:
            self._post(self._reading)
        entry, buffer, work = self._posted.popleft()
        work.wait()  # makes the computation's stream wait, not the host
        self._reading = buffer
        return message_of(entry, self._layout.views(buffer, entry.size, entry.phase), self._layout, self._device)

    def end(self) -> None:
        """Ends the edge: posts the last buffer again, so that the sender's blank messages have receives."""
        if self._reading is not None:
            self._post(self._reading)
            self._reading = None

    def finish(self) -> None:
        """Waits until no receive is posted any more."""
        for _, _, work in self._posted:
            work.wait()
        self._posted.clear()
        self._streams.current().record().synchronize()

    def _post(self, buffer: Tensor) -> None:
        """Receives the next message into ``buffer`` once all computation queued so far has read it."""
        entry = next(self._rounds, None)
        if entry is None:
            return
        self._stream.wait(self._streams.current().record())
        with self._stream.at_work():
            payload = buffer[: self._layout.payload_bytes(entry.size, entry.phase)]
            work = dist.irecv(payload, self._layout.edge.src, group=self._group)
        self._posted.append((entry, buffer, work))


def _streams_on(device: torch.device) -> Streams:
    return CudaStreams(device, HIGH_PRIORITY) if device.type == "cuda" else HostStreams()


def _buffer(layout: Layout, device: torch.device) -> Tensor:
    return torch.empty(layout.payload_bytes(layout.max_batch, LIMIT), dtype=torch.uint8, device=device)
