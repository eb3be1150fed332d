"""Networks for configs to name."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def small(in_channels: int, num_classes: int) -> list[nn.Module]:
    """Two blocks: [B, 1, 8, 8] to [B, 2, 8, 8], and to scores."""
    return [
        nn.Sequential(nn.Conv2d(in_channels, 2, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(128, num_classes)),
    ]


class LooksAtValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def choosy(in_channels: int, num_classes: int) -> list[nn.Module]:
    """Computes one thing or another."""
    return [nn.Sequential(LooksAtValues(), nn.Conv2d(in_channels, 2, 1)), small(2, num_classes)[1]]


class OnlyAlone(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            raise ValueError("one image at a time")
        return torch.relu(x)


def lonely(in_channels: int, num_classes: int) -> list[nn.Module]:
    """Refuses batches."""
    return [nn.Sequential(OnlyAlone(), nn.Conv2d(in_channels, 2, 1)), small(2, num_classes)[1]]
