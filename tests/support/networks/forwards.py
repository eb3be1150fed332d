"""Networks that compute in a ``forward`` of their own: what tracing must get right, and what it must refuse."""

from __future__ import annotations

import random
import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout


class Tokens(nn.Module):
    """A class token, positions, a size that is read at the start and used at the end, functional dropout, and a layer
    scale: all of them parameters that the forward uses directly. ``table`` is a buffer that no state_dict has."""

    def __init__(self, classes: int = 5, rate: float = 0.3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.layers = nn.ModuleList(Layer(rate) for _ in range(3))
        self.register_buffer("table", torch.linspace(0, 1, 8), persistent=False)
        self.register_buffer("unread", torch.ones(3))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, classes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        number = x.shape[0]
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(number, -1, -1), x], dim=1) + self.position
        if mask is not None:
            x = x * mask
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x) * self.get_buffer("table")
        return self.head(x.reshape(number, -1, 8)[:, 0])  # type: ignore[no-any-return]  # nn.Module is untyped


class Layer(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.inner, self.scale, self.rate = nn.Linear(8, 8), nn.Parameter(torch.ones(8)), rate

    def forward(self, x: Tensor) -> Tensor:
        y = dropout(self.inner(x), self.rate, self.training)
        if self.training:
            y = y / (1 - self.rate / 2)
        return x + y.relu_() * self.scale


class ChannelsLast(nn.Module):
    """Maps [B, H, W, C] between its layers, as Swin has them, and at the end [B, C, T], as nn.Conv1d."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem, self.norm, self.mix = nn.Conv2d(3, 8, 4, stride=4), nn.LayerNorm(8), nn.Linear(8, 12)
        self.positions, self.head = nn.Conv1d(12, 6, 1), nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).permute(0, 2, 3, 1))
        x = self.mix(x)
        x = self.positions(x.flatten(1, 2).transpose(1, 2))
        return self.head(x.mean(2))  # type: ignore[no-any-return]  # nn.Module is untyped


class Gate(nn.Module):
    """Control flow that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else -x  # type: ignore[no-any-return]  # nn.Module is untyped


class Gated(nn.Module):
    def __init__(self, outside: bool = False) -> None:
        super().__init__()
        self.stem, self.gate, self.head, self.outside = nn.Linear(6, 8), Gate(), nn.Linear(8, 3), outside

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(self.stem(x))
        return self.head(-x if self.outside and x.sum() > 0 else x)  # type: ignore[no-any-return]


class Sized(nn.Module):
    """Control flow that depends on sizes, which torch.fx cannot trace and torch.export can."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = dropout(self.norm(self.stem(x)).relu(), 0.2, self.training)
        if x.shape[2] > 4:
            x = x[:, :, ::2, ::2]
        return self.head(x.mean((2, 3)) + torch.zeros(8, device=x.device))  # type: ignore[no-any-return]


class Counting(nn.Module):
    """State in an attribute, which tracing would replace by a placeholder."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.last = nn.Linear(6, 8), nn.Linear(8, 3), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        self.last = x.mean()
        return self.head(x)  # type: ignore[no-any-return]  # nn.Module is untyped


class Running(nn.Module):
    """A buffer that changes in training."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return self.head(x - self.mean)  # type: ignore[no-any-return]  # nn.Module is untyped


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())  # type: ignore[no-any-return]  # nn.Module is untyped


class Skipping(nn.Module):
    """The input is alive until the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu())  # type: ignore[no-any-return]  # nn.Module is untyped


class Returning(nn.Module):
    def __init__(self, result: str) -> None:
        super().__init__()
        self.stem, self.head, self.result = nn.Linear(6, 8), nn.Linear(8, 3), result

    def forward(self, x: Tensor) -> Any:
        y = self.head(self.stem(x))
        return {"scores": y} if self.result == "dict" else (y, x)


class TwoInputs(nn.Module):
    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        return images * sizes


class Drawing(nn.Module):
    """Python's random numbers decide what the forward computes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x)) * random.random()  # type: ignore[no-any-return]  # nn.Module is untyped


class StaysFrozen(nn.Module):
    """A network whose ``train`` leaves its norm in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def train(self, mode: bool = True) -> StaysFrozen:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))  # type: ignore[no-any-return]  # nn.Module is untyped


class SharedDropout(nn.Module):
    """One dropout layer in the whole network."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.relu = nn.Dropout(0.5), nn.ReLU(inplace=True)
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.relu(self.first(x)))
        x = self.drop(self.relu(self.second(x)))
        return self.head(x)  # type: ignore[no-any-return]  # nn.Module is untyped


def tokens(in_channels: int, num_classes: int) -> nn.Module:
    return Tokens(num_classes, rate=0.0)


class Uncopied(nn.Module):
    """A network that holds what no copy can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head, self.lock = nn.Linear(6, 8), nn.Linear(8, 3), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x))  # type: ignore[no-any-return]  # nn.Module is untyped


class InPlace(nn.Module):
    """A network that changes its images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.mul_(2))))  # type: ignore[no-any-return]  # nn.Module is untyped


class NamedAsBlocks(nn.Module):
    """A network with a module that has the name of an attribute of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.unit_ends, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.unit_ends(x))  # type: ignore[no-any-return]  # nn.Module is untyped


class InHalf(nn.Module):
    """A network with autocast in its ``forward``, in which the norm differs between the modes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.first(x)
        return self.head(x.float())  # type: ignore[no-any-return]  # nn.Module is untyped


class Rearranged(nn.Module):
    """Maps that are sequences in between, by views alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        size, _, height, width = x.shape
        x = self.first(x).reshape(size, 4, height * width).transpose(1, 2)
        x = x.reshape(size, height, width, 4).permute(0, 3, 1, 2)
        return self.head(self.norm(self.second(x)).mean((2, 3)))  # type: ignore[no-any-return]  # nn.Module is untyped
