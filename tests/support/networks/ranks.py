"""Networks of a user's own that disturb a job."""

from __future__ import annotations

import time

from torch import Tensor, nn

from tests.support.networks.engines import quick


class Breaking(nn.Module):
    """Raises in the training step of this number, from 0, of every attempt."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._left = step

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            if self._left == 0:
                raise ArithmeticError("this network breaks here every time")
            self._left -= 1
        return x


class Slow(nn.Module):
    """Takes its time for every batch."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            time.sleep(self._seconds)
        return x


class Fewer(nn.Module):
    """Loses an image of every training batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:-1] if self.training else x


def fewer(in_channels: int, num_classes: int) -> list[nn.Module]:
    """Those of ``engines:quick``, of which the last loses an image."""
    *others, last = quick(in_channels, num_classes)
    return [*others, nn.Sequential(last, Fewer())]


def breaking(in_channels: int, num_classes: int, step: int) -> list[nn.Module]:
    """One block for small synthetic images."""
    return [_classifier(Breaking(step), in_channels, num_classes)]


def slow(in_channels: int, num_classes: int, seconds: float) -> list[nn.Module]:
    """One block for small synthetic images."""
    return [_classifier(Slow(seconds), in_channels, num_classes)]


def unhurried(in_channels: int, num_classes: int, seconds: float) -> list[nn.Module]:
    """Those of ``engines:quick``, whose steps take their time and no processor's: what disturbs them comes soon."""
    first, *others = quick(in_channels, num_classes)
    return [nn.Sequential(Slow(seconds), first), *others]


def _classifier(first: nn.Module, in_channels: int, num_classes: int) -> nn.Module:
    return nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(in_channels, num_classes))
