"""Memory that holds one message at a time, from header to closing, and is used again and again."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bllpipe.ports import Message, Round
from bllpipe.wire.layout import CLOSING_BYTES, HEADER_BYTES, LIMIT, Layout, message_of, parts_of, put


class _Views(NamedTuple):
    """Where things lie in a message of a certain phase about a certain number of images."""

    whole: Tensor
    parts: list[Tensor]
    closing: memoryview


class Packet:
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
            put(part, view)
        views.closing[:] = header[:CLOSING_BYTES]
        return views.whole

    def check(self, entry: Round) -> None:
        """Raises WireError unless what lies here is the message of this round, and all of it."""
        self._layout.check(bytes(self._header), bytes(self._viewed(entry).closing), entry)

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
