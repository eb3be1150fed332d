"""How modules and activations lie in the memory of their device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bllpipe.config.schema import Config

Module = TypeVar("Module", bound=nn.Module)


def lies_channels_last(config: Config, device: torch.device) -> bool:
    """Whether all channels of a position lie together in memory. Most convolutions are faster so, but their results
    depend on it in the last bits: ``auto`` leaves CPUs as they are."""
    return device.type == "cuda" if config.channels_last == "auto" else config.channels_last


def place(module: Module, config: Config, device: torch.device) -> Module:
    """The module on ``device``, its convolutions' weights as activations lie there."""
    module = module.to(device)
    if lies_channels_last(config, device):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # left out of torch's own types
    return module


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """What is computed inside has the formats of its tensors. Where there is no autocast there is nothing to leave."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def as_channels_last(x: Tensor) -> Tensor:
    """Feature maps [B, C, H, W] with all channels of a position together; anything else as it is.

    Strides are always those of a new channels_last tensor. With one channel or one position others describe the same
    memory, and torch would choose kernels by where the maps came from: a message, or the same process.
    """
    if x.dim() != 4:
        return x
    x = x.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = x.shape
    strides = (channels * height * width, 1, width * channels, channels)
    return x if x.stride() == strides else x.as_strided(x.shape, strides)
