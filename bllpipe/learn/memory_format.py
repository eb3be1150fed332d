"""The memory format of modules and activations (channels last), pools with deterministic gradients, and BatchNorm
without cuDNN.

On a GPU torch sums the gradients of an adaptive pool in no fixed order. An adaptive pool is a product with a matrix of
weights on either side, and products are deterministic forward and backward.

cuDNN's kernel for the backward pass of channels-last maps needs all multiprocessors of a GPU at once, and does not
start while an NCCL kernel waits on some of them for a message (pytorch/pytorch#80259). Such a wait is ordinary here:
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
from bllpipe.models.units import Segment
from bllpipe.utils.tensors import full_precision

Module = TypeVar("Module", bound=nn.Module)


def uses_channels_last(config: Config, device: torch.device) -> bool:
    """Whether activations and weights are channels_last. Most convolutions are faster so, but the last bits of their
    results depend on it: ``auto`` does not change them on a CPU."""
    return device.type == "cuda" if config.channels_last == "auto" else config.channels_last


def place(module: Module, config: Config, device: torch.device) -> Module:
    """The module on ``device``, the weights of its convolutions in the memory format of activations."""
    module = module.to(device)
    if uses_channels_last(config, device):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # left out of torch's own types
    return module


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Disables autocast: what is computed inside has the dtypes of its tensors."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def autocast(config: Config, device: torch.device) -> AbstractContextManager[Any]:
    """The scope of ``precision.compute``."""
    return nullcontext() if config.precision.compute == "fp32" else torch.autocast(device.type, torch.bfloat16)


def as_channels_last(x: Tensor) -> Tensor:
    """Feature maps [B, C, H, W] in channels_last format; any other tensor unchanged.

    Strides are always those of a new channels_last tensor. With one channel or one position other strides describe the
    same memory, and torch would choose kernels by the origin of the maps: a message, or the same process.
    """
    if x.dim() != 4:
        return x
    x = x.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = x.shape
    strides = (channels * height * width, 1, width * channels, channels)
    return x if x.stride() == strides else x.as_strided(x.shape, strides)


class DeterministicAvgPool(nn.Module):
    """``nn.AdaptiveAvgPool2d(size)`` up to rounding: [B, C, H, W] to [B, C, h, w]."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        (height, width), (h, w) = x.shape[-2:], self.size
        with without_autocast(x.device):
            x_HW = full_precision(x)
            pooled_Ww = x_HW @ _pool_weights(width, w, x.device).to(x_HW.dtype)
            pooled_hw = _pool_weights(height, h, x.device).to(x_HW.dtype).T @ pooled_Ww
        return pooled_hw.to(x.dtype)


@torch.no_grad()
def _pool_weights(length: int, parts: int, device: torch.device) -> Tensor:
    """The weight of each of ``length`` positions in each of ``parts`` means, float32 [length, parts]; made on the
    device without a synchronization."""
    return adaptive_avg_pool1d(torch.eye(length, device=device), parts)


def make_pools_deterministic(module: nn.Module) -> None:
    """Replaces every adaptive average pool in ``module`` by a product, except pools to a single position, of which
    torch takes the plain mean. Pools have no state, so names stay. A script's own modules do not change."""
    if any(_replaceable_size(part) for part in module.modules()):
        detach_structure(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if size := _replaceable_size(child):
                setattr(parent, name, DeterministicAvgPool(size))


def _replaceable_size(pool: nn.Module) -> tuple[int, int] | None:
    """The output size of an adaptive pool; None for other modules, a pool to one position, and one that keeps a
    side."""
    if not isinstance(pool, nn.AdaptiveAvgPool2d):
        return None
    size = pool.output_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return None if height is None or width is None or (height, width) == (1, 1) else (height, width)


def detach_structure(module: nn.Module) -> None:
    """Makes changes of layers in a segment invisible in a script's own modules; anything else is bllpipe's own."""
    if isinstance(module, Segment):
        module.detach_structure()


def without_cudnn(module: nn.Module) -> None:
    """From now on no BatchNorm in ``module`` uses cuDNN; convolutions still do. A script's own modules do not
    change."""
    detach_structure(module)
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            vars(part)["forward"] = _disabling_cudnn(part.forward)  # of this instance, not of its class


def _disabling_cudnn(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward_without_cudnn(x: Tensor) -> Tensor:
        enabled = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False
        try:
            return forward(x)
        finally:
            torch.backends.cudnn.enabled = enabled

    return forward_without_cudnn
