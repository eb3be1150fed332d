"""Networks of a user's own, for planning."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class DataDependent(nn.Module):
    """Looks at a value, which whoever only counts operations does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.detach().sum()) > 0 else x


def small(in_channels: int, num_classes: int, looks: bool = False) -> list[nn.Module]:
    """Begins in place, ends without parameters."""
    middle: nn.Module = DataDependent() if looks else nn.ReLU(inplace=True)
    first = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(in_channels, 6, 3))
    return [first, middle, nn.Conv2d(6, num_classes, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))]


def no_list(**settings: Any) -> list[nn.Module]:
    return []


def half_frozen(in_channels: int, num_classes: int) -> list[nn.Module]:
    """Begins with a convolution that does not learn."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(6, num_classes))
    return [nn.Conv2d(in_channels, 6, 3).requires_grad_(False), nn.Conv2d(6, 6, 3), head]


def truncated(in_channels: int, num_classes: int) -> list[nn.Module]:
    """Its first weights come from a truncated normal distribution, which is drawn until all values are inside."""
    hidden = nn.Linear(64, 64)
    nn.init.trunc_normal_(hidden.weight, std=0.02, a=-0.02, b=0.02)
    return [nn.Flatten(1), hidden, nn.Linear(64, num_classes)]
