"""ResNet-18/34/50/101/152 (He et al. 2015) as units, with torchvision's parameter names and the same arithmetic.

The residual units are written out here because importing torchvision takes seconds in every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from bllpipe.config.networks import residual_units, unit_name
from bllpipe.models.units import Layer, Unit


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ResNet-18 and -34."""

    expansion = 1

    def __init__(self, channels: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu, self.downsample = nn.ReLU(inplace=True), downsample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x_BCHW)))
        out = self.bn2(self.conv2(out))
        out += x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return self.relu(out)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a shortcut: ResNet-50, -101 and -152."""

    expansion = 4

    def __init__(self, channels: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu, self.downsample = nn.ReLU(inplace=True), downsample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x_BCHW)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return self.relu(out)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


ResidualUnit = type[BasicBlock] | type[Bottleneck]


@dataclass(frozen=True)
class LaterUnit:
    """A residual unit of the network after a block, of which a local head may have one of its own."""

    kind: ResidualUnit
    planes: int
    stride: int

    @property
    def out_channels(self) -> int:
        return self.planes * self.kind.expansion

    def build(self, channels: int, stride: int) -> nn.Module:
        """One with new weights, for an input of ``channels``."""
        return _residual(self.kind, channels, self.planes, stride)


def later_units(name: str, width: int, unit: str) -> list[LaterUnit]:
    """The residual units after the one called ``unit``, in order."""
    places = residual_units(name)
    first = [unit_name(*place) for place in places].index(unit) + 1
    kind = residual_kind(name)
    return [LaterUnit(kind, width * 2**stage, _stride(stage, index)) for stage, index in places[first:]]


def residual_kind(name: str) -> ResidualUnit:
    return BasicBlock if name in ("resnet18", "resnet34") else Bottleneck


def _stride(stage: int, index: int) -> int:
    return 2 if stage > 0 and index == 0 else 1


def resnet_units(name: str, width: int, stem: str, in_channels: int, num_classes: int) -> list[Unit]:
    """The residual units of a ResNet whose stem has ``width`` channels (64 in the paper).

    Args:
        stem: ``cifar`` (3x3, no max-pool), ``half`` (the same with stride 2: a quarter of the work, for CPUs) or
            ``imagenet`` (7x7 stride 2 and max-pool).
    """
    kind = residual_kind(name)
    units, channels = [], width
    for stage, index in residual_units(name):
        planes, stride = width * 2**stage, _stride(stage, index)
        path, make = unit_name(stage, index), partial(_residual, kind, channels, planes, stride)
        units.append(Unit(path, (Layer(path, make),)))
        channels = planes * kind.expansion
    first, last = units[0], units[-1]
    units[0] = Unit(first.name, (*STEMS[stem](in_channels, width), *first.layers))
    classifier = (
        Layer("avgpool", lambda: nn.AdaptiveAvgPool2d(1)),
        Layer("flatten", lambda: nn.Flatten(1)),
        Layer("fc", lambda: nn.Linear(channels, num_classes)),
    )
    units[-1] = Unit(last.name, (*units[-1].layers, *classifier))
    return units


def _residual(kind: ResidualUnit, channels: int, planes: int, stride: int) -> nn.Module:
    out_channels = planes * kind.expansion
    shortcut = None
    if stride != 1 or channels != out_channels:
        conv = nn.Conv2d(channels, out_channels, kernel_size=1, stride=stride, bias=False)
        shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_channels))
    return _initialised(kind(channels, planes, stride, shortcut))


def _initialised(module: nn.Module) -> nn.Module:
    """Kaiming's initialisation of the convolutions, as torchvision has it."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
    return module


def _stem(in_channels: int, width: int, kernel: int, stride: int, max_pool: bool = False) -> tuple[Layer, ...]:
    def convolution() -> nn.Module:
        return _initialised(nn.Conv2d(in_channels, width, kernel, stride, padding=kernel // 2, bias=False))

    layers = (
        Layer("conv1", convolution),
        Layer("bn1", lambda: nn.BatchNorm2d(width)),
        Layer("relu", lambda: nn.ReLU(inplace=True)),
    )
    pool = Layer("maxpool", lambda: nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
    return (*layers, pool) if max_pool else layers


STEMS: dict[str, Callable[[int, int], tuple[Layer, ...]]] = {
    "cifar": partial(_stem, kernel=3, stride=1),
    "half": partial(_stem, kernel=3, stride=2),
    "imagenet": partial(_stem, kernel=7, stride=2, max_pool=True),
}
