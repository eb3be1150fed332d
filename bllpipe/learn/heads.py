"""Local heads: how a block that is not the last reads class scores from its own activations.

What the head reads decides most: a linear layer on a pool of about 4,096 features keeps where things are
(Nokland & Eidnes 2019), a global average does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from torch import Tensor, nn

from bllpipe.config.schema import ObjectiveConfig


def make_head(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig) -> nn.Module:
    """The head ``config.head`` for alpha of ``alpha_shape`` (without the batch); gives [B, num_classes]."""
    if len(alpha_shape) != 3:
        return _linear_on_means(alpha_shape, num_classes)
    return HEADS[config.head](alpha_shape, num_classes, config)


def pooled_shape(alpha_shape: Sequence[int], at_most: int) -> tuple[int, int]:
    """The largest square pool of [C, H, W], at least 1x1, that leaves at most ``at_most`` features."""
    channels, height, width = alpha_shape
    side = max(1, int((at_most / channels) ** 0.5))
    return min(side, height), min(side, width)


def _pool(alpha_shape: Sequence[int], at_most: int) -> tuple[nn.Module, int]:
    shape = pooled_shape(alpha_shape, at_most)
    pool: nn.Module = nn.Identity() if shape == tuple(alpha_shape[1:]) else nn.AdaptiveAvgPool2d(shape)
    return pool, alpha_shape[0] * prod(shape)


def _linear(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig) -> nn.Module:
    pool, features = _pool(alpha_shape, config.head_features)
    return nn.Sequential(pool, nn.Flatten(1), nn.Linear(features, num_classes))


def _mlp(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig) -> nn.Module:
    pool, features = _pool(alpha_shape, config.head_features)
    hidden = nn.Linear(features, config.head_hidden)
    return nn.Sequential(pool, nn.Flatten(1), hidden, nn.ReLU(), nn.Linear(config.head_hidden, num_classes))


def _conv(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig) -> nn.Module:
    channels, height, width = alpha_shape
    layers: list[nn.Module] = []
    for index in range(config.head_layers):
        stride = 2 if index else 1
        height, width = -(-height // stride), -(-width // stride)
        layers += [nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, _linear((channels, height, width), num_classes, config))


def _narrow(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig) -> nn.Module:
    """A convolutional head that costs little whatever the block's width: it first takes the channels together."""
    channels, height, width = alpha_shape
    few = min(channels, config.head_hidden)
    reduce = (nn.Conv2d(channels, few, 1, bias=False), nn.BatchNorm2d(few), nn.ReLU())
    return nn.Sequential(*reduce, _conv((few, height, width), num_classes, config))


def _gap(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(alpha_shape[0], num_classes))


HEADS: dict[str, Callable[[Sequence[int], int, ObjectiveConfig], nn.Module]] = {
    "linear": _linear,
    "mlp": _mlp,
    "conv": _conv,
    "narrow": _narrow,
    "gap": _gap,
}


class _TokenMean(nn.Module):
    """[B, T, C] to [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1) if x.dim() == 3 else x


def _linear_on_means(alpha_shape: Sequence[int], num_classes: int) -> nn.Module:
    """For tokens [T, C] and vectors [C], which have no positions to pool."""
    return nn.Sequential(_TokenMean(), nn.Linear(alpha_shape[-1], num_classes))
