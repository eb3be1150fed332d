"""Memory that holds one message at a time, header and payload, and is used again and again."""

from __future__ import annotations

import torch
from torch import Tensor

from bllpipe.ports import Message, Round
from bllpipe.wire.layout import HEADER_BYTES, Layout, message_of, parts_of


class Packet:
    """Room for the largest message of an edge. A message's views into it are made once for every size of batch."""

    def __init__(self, layout: Layout, pinned: bool = False) -> None:
        self._layout = layout
        self._buffer = torch.empty(layout.message_bytes(layout.max_batch), dtype=torch.uint8, pin_memory=pinned)
        self._header = self._buffer.numpy().data[:HEADER_BYTES]
        self._views: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def whole(self, size: int) -> Tensor:
        """The bytes of a message about ``size`` images, uint8."""
        return self._viewed(size)[0]

    def write(self, message: Message) -> Tensor:
        """Puts the message in, converted to the wire's formats; its bytes. Raises WireError for other shapes."""
        self._layout.check_shapes(message)
        whole, views = self._viewed(message.round.size)
        self._header[:] = self._layout.expected_header(message.round)
        for part, view in zip(parts_of(message), views, strict=True):
            view.copy_(part.detach())
        return whole

    def check(self, entry: Round) -> None:
        """Raises WireError unless what lies here is the message of this round."""
        self._layout.check(bytes(self._header), entry)

    def read(self, entry: Round, device: torch.device) -> Message:
        """The message of this round on ``device``; on a CPU its tensors are views, if their format needs no change."""
        return message_of(entry, self._viewed(entry.size)[1], self._layout, device)

    def _viewed(self, size: int) -> tuple[Tensor, list[Tensor]]:
        if size not in self._views:
            payload = self._buffer[HEADER_BYTES:]
            self._views[size] = self._buffer[: self._layout.message_bytes(size)], self._layout.views(payload, size)
        return self._views[size]
