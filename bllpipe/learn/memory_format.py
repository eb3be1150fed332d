"""How modules and activations lie in memory (channels last, precision), pools with deterministic gradients, and
BatchNorm without cuDNN.

torch adds up the gradients of an adaptive pool in any order on a GPU. An adaptive pool is a product with a matrix of
shares on either side, and products are deterministic both ways.

cuDNN's kernel for the backward pass of channels-last maps wants all of a GPU's processors at once, and does not begin
while a kernel of NCCL waits on some of them for a message (pytorch/pytorch#80259). Such a wait is ordinary here:
receives are posted ahead. torch chooses the kernels of both passes in the forward pass.

Shapes: B images, C channels, H x W positions, h x w of them after the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d
from torch.nn.modules.batchnorm import _BatchNorm

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


def autocast(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """The scope of ``precision.compute``."""
    return nullcontext() if config.precision.compute == "fp32" else torch.autocast(device.type, torch.bfloat16)


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


class DeterministicAvgPool(nn.Module):
    """What ``nn.AdaptiveAvgPool2d(size)`` gives, up to rounding: [B, C, H, W] to [B, C, h, w]."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        (height, width), (h, w) = x.shape[-2:], self.size
        with without_autocast(x.device):
            pooled_Ww = x.float() @ _shares(width, w, x.device)
            pooled_hw = _shares(height, h, x.device).T @ pooled_Ww
        return pooled_hw.to(x.dtype)


@torch.no_grad()
def _shares(length: int, parts: int, device: torch.device) -> Tensor:
    """How much each of ``length`` positions gives to each of ``parts`` means, float32 [length, parts]; made on the
    device, which nobody waits for."""
    return adaptive_avg_pool1d(torch.eye(length, device=device), parts)


def make_pools_deterministic(module: nn.Module) -> None:
    """Every adaptive average pool in ``module`` becomes one by products, but those to a single position: torch takes
    their plain mean. They have no state, so names stay."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            size = _size(child) if isinstance(child, nn.AdaptiveAvgPool2d) else None
            if size not in (None, (1, 1)):
                setattr(parent, name, DeterministicAvgPool(size))


def _size(pool: nn.AdaptiveAvgPool2d) -> tuple[int, int] | None:
    """None for one that keeps a side as it is."""
    size = pool.output_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return None if height is None or width is None else (height, width)


def without_cudnn(module: nn.Module) -> None:
    """From now on no BatchNorm in ``module`` uses cuDNN; convolutions do as ever."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            vars(part)["forward"] = _computed_without(part.forward)  # of this one, not of its class


def _computed_without(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def computed(x: Tensor) -> Tensor:
        before = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False
        try:
            return forward(x)
        finally:
            torch.backends.cudnn.enabled = before

    return computed
