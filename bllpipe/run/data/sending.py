"""From the CPU to the device of the blocks, without the host waiting for it.

All draws are made on the CPU, and what was drawn follows the images to where they are: a few numbers an image.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on ``device``, behind what is queued there. torch keeps pinned memory until it is copied."""
    if tensor.device == device:
        return tensor
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)
