"""Links inside one process, for threads and for blocks that take turns: the same ports, the same bits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bllpipe.errors import WireError
from bllpipe.ports import Message, Round
from bllpipe.topology import Edge
from bllpipe.wire.channel import Channel
from bllpipe.wire.layout import Layout, message_of, tensors_of

Parcel = tuple[bytes, list[Tensor]]


class LocalSender:
    """Puts a copy of each message into the channel, in the wire's format, as a link between processes would."""

    def __init__(self, layout: Layout, channel: Channel[Parcel], device: torch.device, timeout: float) -> None:
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
    """Takes messages out of the channel and checks each against the round that must come next."""

    def __init__(
        self, layout: Layout, channel: Channel[Parcel], rounds: Iterator[Round], device: torch.device, timeout: float
    ) -> None:
        self._layout, self._channel, self._rounds = layout, channel, rounds
        self._device, self._timeout = device, timeout

    def recv(self) -> Message:
        entry = next(self._rounds)
        try:
            header, tensors = self._channel.get(self._timeout)
        except TimeoutError:
            raise WireError(
                f"{self._layout}: {self._layout.roles[1]} waited {self._timeout:g} s for {entry}; nothing came"
            ) from None
        self._layout.compare(header, self._layout.expected_header(entry))
        return message_of(entry, tensors, self._layout, self._device)

    @property
    def queued(self) -> int:
        """Messages that were put and nobody has taken yet."""
        return len(self._channel)


class LocalWires:
    """One channel an edge, as deep as the edge's ring."""

    def __init__(self, device: torch.device, timeout: float) -> None:
        self._channels: dict[Edge, Channel[Parcel]] = {}
        self._device, self._timeout = device, timeout

    def sender(self, layout: Layout) -> LocalSender:
        """The outgoing end of the layout's edge."""
        return LocalSender(layout, self._channel(layout), self._device, self._timeout)

    def receiver(self, layout: Layout, rounds: Iterator[Round]) -> LocalReceiver:
        """The incoming end of the layout's edge, for the messages of ``rounds``."""
        return LocalReceiver(layout, self._channel(layout), rounds, self._device, self._timeout)

    def close(self, error: BaseException) -> None:
        """Ends every wait on every edge with ``error``."""
        for channel in self._channels.values():
            channel.close(error)

    def _channel(self, layout: Layout) -> Channel[Parcel]:
        return self._channels.setdefault(layout.edge, Channel(layout.ring))
