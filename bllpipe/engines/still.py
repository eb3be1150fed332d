"""Images and labels in memory that stays where it is, which is where a graph looks for those of its step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bllpipe.ports import Alpha, Receiver, Round
from bllpipe.run.loops import BlockLoop, LaneLoop, Loop


class Still:
    """What ``draw`` gives; once it was fetched, a copy of it at the same place every time."""

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        self._draw = draw
        self._room: Tensor | None = None
        self._is_fetched = False

    def fetch(self) -> None:
        """Queues the copy of what comes next, on the current stream, for whoever asks next."""
        drawn = self._draw()
        if self._room is None:
            self._room = torch.empty_like(drawn)
        self._room.copy_(drawn, non_blocking=True)
        self._is_fetched = True

    def take(self) -> Tensor:
        """What comes next, in its place if it was fetched."""
        if not self._is_fetched:
            return self._draw()
        assert self._room is not None, "it was fetched"
        self._is_fetched = False
        return self._room


class StillImages:
    """Takes the place of what the first block receives."""

    def __init__(self, images: Receiver[Alpha]) -> None:
        self._images, self._rounds = images, list[Round]()
        self._still = Still(self._drawn)

    @classmethod
    def of(cls, loop: Loop) -> StillImages:
        """From now on ``loop``, that of the first block, gets its images from here."""
        assert isinstance(loop, BlockLoop), "blocks have images"
        found = cls(loop.inputs)
        loop.inputs = found
        return found

    def fetch(self) -> None:
        """Queues the copy of the next batch, for the next ``recv``."""
        self._still.fetch()

    def recv(self) -> Alpha:
        x = self._still.take()
        return Alpha(self._rounds.pop(0), x)

    def _drawn(self) -> Tensor:
        message = self._images.recv()
        self._rounds.append(message.round)
        return message.alpha_BCHW


class StillLabels:
    """Takes the place of what a lane draws its labels from."""

    def __init__(self, labels: Iterator[Tensor]) -> None:
        self._still = Still(lambda: next(labels))

    @classmethod
    def of(cls, loop: Loop) -> StillLabels:
        """From now on ``loop``, that of a lane, gets its labels from here."""
        assert isinstance(loop, LaneLoop), "lanes have labels"
        found = cls(loop.labels)
        loop.labels = found
        return found

    def fetch(self) -> None:
        """Queues the copy of the next labels, for the next ``next``."""
        self._still.fetch()

    def __iter__(self) -> StillLabels:
        return self

    def __next__(self) -> Tensor:
        return self._still.take()
