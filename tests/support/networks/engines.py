"""Networks of a user's own: two that no run can be made of, one without batch norms, and some that are quick."""

from __future__ import annotations

from torch import Tensor, nn


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


def eight(in_channels: int, num_classes: int) -> list[nn.Module]:
    """Eight units, the later ones on smaller maps and behind a skip connection, and little to compute."""
    layers = [nn.Conv2d(in_channels, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    last = [Skip(4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, num_classes)]
    return [nn.Sequential(*layers), *(Skip(4, stride) for stride in (1, 2, 1, 2, 1, 1)), nn.Sequential(*last)]


class Skip(nn.Module):
    """A layer whose input is added to its output."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        skipped: Tensor = x[:, :, :: self.stride, :: self.stride]
        return (self.norm(self.conv(x)) + skipped).relu()  # type: ignore[no-any-return]  # nn.Module is untyped


def learner(in_channels: int, num_classes: int) -> list[nn.Module]:
    """Eight units that learn the digits in seconds."""

    def layers(before: int, after: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    sizes = [(in_channels, 16, 1), (16, 16, 1), (16, 16, 2), (16, 32, 1), (32, 32, 1), (32, 32, 1), (32, 32, 1)]
    last = [*layers(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(32, num_classes)]
    return [*(nn.Sequential(*layers(*size)) for size in sizes), nn.Sequential(*last)]
