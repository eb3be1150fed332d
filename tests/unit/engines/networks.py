"""Networks of a user's own that no run can be made of."""

from __future__ import annotations

from torch import nn


def features(in_channels: int, num_classes: int) -> list[nn.Module]:
    """Ends with seven numbers for each image, whatever is asked for."""
    return [nn.Conv2d(in_channels, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 7))]


def misfit(in_channels: int, num_classes: int) -> list[nn.Module]:
    """The second half wants more channels than the first one gives."""
    return [nn.Conv2d(in_channels, 4, 3), nn.Sequential(nn.Conv2d(5, num_classes, 6), nn.Flatten(1))]
