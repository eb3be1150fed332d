"""What a researcher brings along: a small network, data that it can learn, and local losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import bllpipe

FEATURES, CLASSES = 6, 3


def network(in_channels: int = FEATURES, num_classes: int = CLASSES, hidden: int = 8) -> list[nn.Module]:
    middle = nn.Sequential(nn.BatchNorm1d(hidden), nn.Linear(hidden, hidden), nn.ReLU())
    return [nn.Linear(in_channels, hidden), middle, nn.Linear(hidden, num_classes)]


def seeded_network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*network())


def split(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points around one centre a class, float32 [N, 6], and their classes [N]."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % CLASSES
    centres = torch.eye(CLASSES, FEATURES) * 3
    return centres[labels] + torch.randn(number, FEATURES, generator=draws), labels


DATA = (split(96, 0), split(30, 1))


def towards_class(alpha: Tensor, scores: Tensor, target: bllpipe.Target, x: Tensor) -> dict[str, Tensor]:
    """Cross-entropy, and the squared distance of the channel means from beta."""
    distance = (bllpipe.channel_means(alpha) - target.beta_BC).square().sum(dim=1)
    return {"near": (distance * target.known_B).mean(), "pred": cross_entropy(scores, target.label_B)}


class Scaled(nn.Module):
    """A local loss with a parameter of its own: the temperature of the scores."""

    def __init__(self, config: Any, alpha_shape: Any, num_classes: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, alpha: Tensor, scores: Tensor, target: bllpipe.Target, x: Tensor) -> dict[str, Tensor]:
        return {"pred": cross_entropy(scores / self.temperature, target.label_B)}


def digit_network(in_channels: int, num_classes: int) -> list[nn.Module]:
    return [nn.Flatten(), *network(in_channels * 64, num_classes)]
