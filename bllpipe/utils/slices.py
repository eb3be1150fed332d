"""Tensors of which every process of a group holds a slice of the rows: torch's DTensor, known here by its methods
alone, as torch.distributed.tensor takes seconds to import."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

Gather = Callable[[Tensor], Tensor]  # the whole of a sliced tensor, which all processes of its group call


def is_sliced(tensor: Tensor) -> bool:
    """Whether this process holds a slice of ``tensor``, whose shape is that of the whole."""
    return hasattr(tensor, "to_local")


@torch.no_grad()
def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of ``tensor``, in the same memory: its slice, or all of it."""
    return tensor.to_local() if is_sliced(tensor) else tensor  # type: ignore[attr-defined, no-any-return]  # of a DTensor


def slice_of(whole: Tensor, own: Tensor) -> Tensor:
    """What this process holds of ``whole`` if it holds as much as of ``own``: a view."""
    if not is_sliced(own):
        return whole
    mesh = own.device_mesh  # type: ignore[attr-defined]  # of a DTensor
    slices = whole.chunk(mesh.size())  # as torch slices: the last ones may be smaller, or missing
    return slices[mesh.get_local_rank()] if mesh.get_local_rank() < len(slices) else whole[:0]


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor; all processes of its group must call this."""
    return tensor.full_tensor() if is_sliced(tensor) else tensor  # type: ignore[attr-defined, no-any-return]  # of a DTensor


class WholeTensors(Mapping[str, Tensor]):
    """``tensors`` by name, sliced ones whole: each is gathered when it is read, so that one is in memory at a time.

    All processes of the group must read the sliced ones in the same ``order``; ``read_rest`` reads those that this one
    has not.
    """

    def __init__(self, tensors: Mapping[str, Tensor], order: Sequence[str], gather: Gather = gathered) -> None:
        self.tensors, self.order, self._gather = tensors, order, gather
        self._left = deque(name for name in order if is_sliced(tensors[name]))

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        if not is_sliced(tensor):
            return tensor
        expected = self._left.popleft()
        assert name == expected, f"expected {expected} to be read next, got {name}"
        return self._gather(tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)

    def read_rest(self) -> None:
        while self._left:
            self[self._left[0]]
