"""Adaptive average pools whose gradients are the same in every run on a GPU.

torch adds up the gradients of an adaptive pool in any order there. An adaptive pool is a product with a matrix of
shares on either side, and products are deterministic both ways.

Shapes: B images, C channels, H x W positions, h x w of them after the pool.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d

from bllpipe.learn.placing import without_autocast


class PoolByProducts(nn.Module):
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


def pool_by_products(module: nn.Module) -> None:
    """Every adaptive average pool in ``module`` becomes one by products, but those to a single position: torch takes
    their plain mean. They have no state, so names stay."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            size = _size(child) if isinstance(child, nn.AdaptiveAvgPool2d) else None
            if size not in (None, (1, 1)):
                setattr(parent, name, PoolByProducts(size))


def _size(pool: nn.AdaptiveAvgPool2d) -> tuple[int, int] | None:
    """None for one that keeps a side as it is."""
    size = pool.output_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return None if height is None or width is None else (height, width)
