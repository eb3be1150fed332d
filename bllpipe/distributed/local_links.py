"""Links inside one process, for threads and for blocks that run in turn: the same ports, the same bits. Between threads
they are bounded FIFOs, which are closed with the error of the other side.
"""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from bllpipe.distributed.message_format import Layout, message_of, tensors_of
from bllpipe.errors import WireError
from bllpipe.messages import Message, Round
from bllpipe.topology import Edge
from bllpipe.utils.process import SLICE_SECONDS

Packet = tuple[bytes, list[Tensor]]
Item = TypeVar("Item")


class LocalSender:
    """Puts a copy of each message into the channel, in the dtypes of the layout, as a link between processes does."""

    def __init__(self, layout: Layout, channel: Channel[Packet], device: torch.device, timeout: float) -> None:
        self._layout, self._channel, self._device, self._timeout = layout, channel, device, timeout

    def send(self, message: Message) -> None:
        tensors = [tensor.clone() for tensor in tensors_of(message, self._layout, self._device)]
        try:
            self._channel.put((self._layout.header(message.round, tensors), tensors), self._timeout)
        except TimeoutError:
            raise WireError(
                f"{self._layout}: {self._layout.roles[0]} could not send {message.round} for {self._timeout:g} s"
            ) from None


class LocalReceiver:
    """Takes messages out of the channel and checks each against the next round."""

    def __init__(
        self, layout: Layout, channel: Channel[Packet], rounds: Iterator[Round], device: torch.device, timeout: float
    ) -> None:
        self._layout, self._channel, self._rounds = layout, channel, rounds
        self._device, self._timeout = device, timeout

    def recv(self) -> Message:
        entry = next(self._rounds)
        try:
            header, tensors = self._channel.get(self._timeout)
        except TimeoutError:
            raise WireError(
                f"{self._layout}: {self._layout.roles[1]} waited {self._timeout:g} s for {entry}; no message arrived"
            ) from None
        self._layout.compare(header, self._layout.expected_header(entry))
        return message_of(entry, tensors, self._layout, self._device)

    @property
    def queued(self) -> int:
        """Messages that were sent and not read yet."""
        return len(self._channel)


class LocalLinks:
    """One channel an edge, as deep as the edge's ring."""

    def __init__(self, device: torch.device, timeout: float) -> None:
        self._channels: dict[Edge, Channel[Packet]] = {}
        self._device, self._timeout = device, timeout

    def sender(self, layout: Layout) -> LocalSender:
        """The outgoing end of the layout's edge."""
        return LocalSender(layout, self._channel(layout), self._device, self._timeout)

    def receiver(self, layout: Layout, rounds: Iterator[Round]) -> LocalReceiver:
        """The incoming end of the layout's edge, for the messages of ``rounds``."""
        return LocalReceiver(layout, self._channel(layout), rounds, self._device, self._timeout)

    def close(self, error: BaseException) -> None:
        """Raises ``error`` in every wait on every edge."""
        for channel in self._channels.values():
            channel.close(error)

    def _channel(self, layout: Layout) -> Channel[Packet]:
        return self._channels.setdefault(layout.edge, Channel(layout.ring))


class _Closed:
    """The last item of a closed channel."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Channel(Generic[Item]):
    """A FIFO of at most ``capacity`` items. Waiting is on a lock, so signal handlers still run.

    It is two queues, of items and of free places: the queues of the standard library are written in C, and every
    message passes several channels.
    """

    def __init__(self, capacity: int) -> None:
        self._items: SimpleQueue[Any] = SimpleQueue()
        self._places: SimpleQueue[Any] = SimpleQueue()
        for _ in range(capacity):
            self._places.put(None)
        self._error: BaseException | None = None

    def put(self, item: Item, timeout: float | None = None) -> None:
        """Waits for a free place. Raises TimeoutError, or the error that closed the channel."""
        if self._error is not None:
            raise self._error
        _get(self._places, timeout)
        self._items.put(item)

    def get(self, timeout: float | None = None) -> Item:
        """Waits for an item. Items that were put before the channel was closed are still returned."""
        item: Item = _get(self._items, timeout)
        self._places.put(None)
        return item

    def __len__(self) -> int:
        """The number of items."""
        return self._items.qsize()

    def close(self, error: BaseException) -> None:
        """Wakes all waiting threads; from now on every wait raises ``error``. Only the first error counts."""
        if self._error is None:
            self._error = error
            self._items.put(_Closed(error))
            self._places.put(_Closed(error))


def _get_within(queue: SimpleQueue[Any], timeout: float) -> Any:
    """Waits in slices, so that of a time in which the process was stopped, as by Ctrl-Z, at most one counts."""
    left = timeout
    while True:
        try:
            return queue.get(timeout=min(left, SLICE_SECONDS))
        except Empty:
            left -= SLICE_SECONDS
            if left <= 0:
                raise TimeoutError from None


def _get(queue: SimpleQueue[Any], timeout: float | None) -> Any:
    item = queue.get() if timeout is None else _get_within(queue, timeout)
    if isinstance(item, _Closed):
        queue.put(item)  # for the next wait
        raise item.error
    return item
