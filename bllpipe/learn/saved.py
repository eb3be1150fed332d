"""Taking tensors out of a checkpoint: each must be exactly what is needed, because ``copy_`` alone would stretch a
single number over a whole weight, and turn fractions into whole numbers, without a word."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bllpipe.errors import CheckpointError


@torch.no_grad()
def restore(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copies into ``own`` what ``saved`` has of it.

    Raises CheckpointError, and copies nothing, unless every tensor has the very shape and dtype that is needed.
    """
    shared = [name for name in own if name in saved]
    for name in shared:
        check_same(name, own[name], saved[name])
    for name in shared:
        own[name].copy_(saved[name])


def check_same(name: str, needed: Tensor, found: Tensor) -> None:
    """Raises CheckpointError, naming the tensor, unless ``found`` has the shape and the dtype of ``needed``."""
    if (found.dtype, found.shape) != (needed.dtype, needed.shape):
        raise CheckpointError(
            f"the checkpoint holds {name} as {dtype_and_shape(found)}, but this run needs {dtype_and_shape(needed)}; "
            f"give the config and the data back their old values, or name a checkpoint of this network"
        )


def is_of_network(name: str) -> bool:
    """Whether a checkpoint's tensor of that name is the network's own: no head, no feedback, and none of the random
    weights through which feedback alignment carries errors back."""
    return name.startswith("model.") and not name.endswith(".feedback_weight")


def dtype_and_shape(tensor: Tensor) -> str:
    """dtype and shape, such as float32[10, 64]."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
