"""In which order the training images come: a pure function of seed and epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from bllpipe.randomness import stream


def epoch_order(seed: int, epoch: int, num_train: int) -> Tensor:
    """A permutation of the training images, int64 [num_train]."""
    return torch.randperm(num_train, generator=stream(seed, "order", epoch))


def batch_index(order: Tensor, batch: int, batch_size: int) -> Tensor:
    """The images of mini-batch ``batch``, int64 [batch_size]. An incomplete last batch is never asked for."""
    return order[batch * batch_size : (batch + 1) * batch_size]
