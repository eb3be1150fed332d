"""Links between processes over gloo, and the buffers of their messages.

A gloo send completes only when its receive is posted, a message that is larger than its receive kills the receiving
process, and waiting blocks signals. So every outgoing edge has a sender thread, and every incoming one two threads that
receive ahead of the loop: one posts a receive into every buffer that is free, one waits for the oldest. The thread of
the loop only fills and empties buffers, which are reused.

A send whose receive is posted starts at once. The receiver's notice that it is posted takes the link's delay d, and so
does the message; then the buffer is read, for the time T of a step, and posted again. With r buffers there are r
messages in 2 d + T, so a slow link costs nothing if r >= 1 + 2 d / T. Several posted sends would not help: the next one
starts as soon as the one before it is in the kernel's buffer.

A message is one send, from header to trailer, as each send costs some wake-ups of threads at both ends. Both ends have
agreed on its format before (distributed/process_links.py).

Tensors on a GPU go through pinned buffers. The thread of the loop only queues the copies; the sender thread waits until
its buffer is written, the receiver thread until its buffer has been read.
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
    HEADER_BYTES,
    LIMIT,
    TRAILER_BYTES,
    Layout,
    copy_into,
    message_of,
)
from bllpipe.errors import WireError
from bllpipe.messages import Message, Round

CPU = torch.device("cpu")


class GlooSender:
    """Sends without waiting while fewer than ``in_flight`` messages are in flight."""

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
            buffer = self._free.get(self._timeout)
        except TimeoutError:
            raise WireError(
                f"{self._layout}: {self._layout.roles[1]} received nothing for {self._timeout:g} s; "
                f"{self._layout.roles[0]} was at {message.round}"
            ) from None
        buffer.write(message)
        self._full.put((buffer, message.round, self._streams.current().record()))

    @property
    def queued(self) -> int:
        """Messages that are not sent yet."""
        return self._in_flight - len(self._free)

    def finish(self) -> None:
        """Waits until all messages are sent."""
        self._full.put(None)
        self._thread.join(self._timeout)

    def _send_all(self) -> None:
        when = "the start"
        try:
            while (item := self._full.get()) is not None:
                buffer, entry, written = item
                when = str(entry)
                written.synchronize()
                work = dist.isend(buffer.message_view(entry), self._layout.edge.dst, group=self._group)
                assert work is not None, "this rank is an end of the edge"
                work.wait()
                self._free.put(buffer)
        except RuntimeError:
            error = _disconnected(self._layout, self._layout.roles[1], when)
            self._free.close(error)
            self._full.close(error)


class _Posted(NamedTuple):
    """A posted receive. Its buffer and its Work must live until it is done, as gloo writes into the buffer."""

    entry: Round
    buffer: MessageBuffer
    work: Any


class GlooReceiver:
    """Receives ahead of the loop into a ring of buffers, in the order of the run schedule."""

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
        self._posted: Channel[_Posted | None] = Channel(layout.ring + 1)
        self._reading: MessageBuffer | None = None
        for task, name in ((self._post_all, "post"), (self._wait_for_all, "recv")):
            threading.Thread(target=task, name=f"{name} {layout.edge}", daemon=True).start()

    def recv(self) -> Message:
        if self._reading is not None:
            self._free.put((self._reading, self._streams.current().record()))
            self._reading = None
        try:
            entry, self._reading = self._ready.get(self._timeout)
        except TimeoutError:
            raise WireError(
                f"{self._layout}: {self._layout.roles[1]} waited {self._timeout:g} s for a message from "
                f"{self._layout.roles[0]}; none arrived"
            ) from None
        return self._reading.read(entry, self._device)

    @property
    def queued(self) -> int:
        """Messages that were received and not read yet."""
        return len(self._ready)

    def _post_all(self) -> None:
        """Keeps a receive posted for every free buffer. If that fails, messages that came before still count."""
        when = "the start"
        try:
            for entry in self._rounds:
                when, (buffer, read) = str(entry), self._free.get()
                read.synchronize()
                work = dist.irecv(buffer.all_bytes, self._layout.edge.src, group=self._group)
                assert work is not None, "this rank is an end of the edge"
                self._posted.put(_Posted(entry, buffer, work))
            self._posted.put(None)
        except RuntimeError:
            self._posted.close(_disconnected(self._layout, self._layout.roles[0], when))

    def _wait_for_all(self) -> None:
        when = "the start"
        try:
            while (posted := self._posted.get()) is not None:
                when = str(posted.entry)
                posted.work.wait()
                posted.buffer.check(posted.entry)
                self._ready.put((posted.entry, posted.buffer))
        except WireError as error:
            self._ready.close(error)
        except RuntimeError:
            self._ready.close(_disconnected(self._layout, self._layout.roles[0], when))


def _disconnected(layout: Layout, peer: str, when: str) -> WireError:
    return WireError(f"{layout}: {peer} is gone at {when}: the connection was closed")


class _Views(NamedTuple):
    """Views of a buffer for messages of one phase and one number of images."""

    whole: Tensor
    parts: list[Tensor]
    trailer: memoryview


class MessageBuffer:
    """A buffer for the largest message of an edge. Views of messages into it are made once for every phase and size."""

    def __init__(self, layout: Layout, pinned: bool = False) -> None:
        self._layout = layout
        # uint8, for receives: a message of an unexpected size must not be larger than its receive.
        # Zeros: used memory may hold the end of the same message, of another run, and would complete a truncated one
        self.all_bytes = torch.zeros(
            layout.message_bytes(layout.max_batch, LIMIT), dtype=torch.uint8, pin_memory=pinned
        )
        self._bytes = self.all_bytes.numpy().data
        self._header = self._bytes[:HEADER_BYTES]
        self._views: dict[tuple[int, str], _Views] = {}

    def message_view(self, entry: Round) -> Tensor:
        """The bytes of the message of this round, uint8."""
        return self._views_of(entry).whole

    def write(self, message: Message) -> Tensor:
        """Writes the message, converted to the dtypes of the layout; returns its bytes. WireError for other shapes."""
        self._layout.check_shapes(message)
        views, header = self._views_of(message.round), self._layout.expected_header(message.round)
        self._header[:] = header
        for part, view in zip(self._layout.sent_parts(message), views.parts, strict=True):
            copy_into(part, view)
        views.trailer[:] = header[:TRAILER_BYTES]
        return views.whole

    def check(self, entry: Round) -> None:
        """Raises WireError unless the buffer holds the whole message of this round."""
        self._layout.check(bytes(self._header), bytes(self._views_of(entry).trailer), entry)

    def read(self, entry: Round, device: torch.device) -> Message:
        """The message of this round on ``device``; on a CPU its tensors are views, if their dtype does not change."""
        return message_of(entry, self._views_of(entry).parts, self._layout, device)

    def _views_of(self, entry: Round) -> _Views:
        form = entry.size, entry.phase
        if form not in self._views:
            end = self._layout.message_bytes(*form)
            parts = self._layout.views(self.all_bytes[HEADER_BYTES:], *form)
            self._views[form] = _Views(self.all_bytes[:end], parts, self._bytes[end - TRAILER_BYTES : end])
        return self._views[form]
