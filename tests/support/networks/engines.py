"""Networks of a user's own: two that no run can be made of, one without batch norms, and one that is quick."""

from __future__ import annotations

from torch import nn


def features(in_channels: int, num_classes: int) -> list[nn.Module]:
    """Ends with seven numbers for each image, whatever is asked for."""
    return [nn.Conv2d(in_channels, 4, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 7))]


def misfit(in_channels: int, num_classes: int) -> list[nn.Module]:
    """The second half wants more channels than the first one gives."""
    return [nn.Conv2d(in_channels, 4, 3), nn.Sequential(nn.Conv2d(5, num_classes, 6), nn.Flatten(1))]


def plain(in_channels: int, num_classes: int) -> list[nn.Module]:
    """Gives the same scores for an image whatever else is in its batch."""
    first = nn.Sequential(nn.Conv2d(in_channels, 8, 3, stride=2), nn.ReLU())
    return [first, nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(1), nn.Linear(32, num_classes))]


def quick(in_channels: int, num_classes: int) -> list[nn.Module]:
    """Three units with all that a step can hold, and little to compute."""

    def layers(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]

    last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, num_classes)]
    return [nn.Sequential(*layers(in_channels)), nn.Sequential(*layers(4)), nn.Sequential(*layers(4), *last)]
