"""Local heads: how a block that is not the last reads class scores from its own activations.

What the head reads decides most: a linear layer on a pool of about 4,096 features keeps where things are
(Nokland & Eidnes 2019), a global average does not, unless convolutions have come before it that end as wide as the
network does (``strided``). The more features, the smaller the learning rate that a linear layer on them bears: momentum
SGD needs about lr < 3.8 / (0.1 L), L the largest eigenvalue of the features' second moment, which grows with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod, sqrt

from torch import Tensor, nn

from bllpipe.config.schema import ObjectiveConfig
from bllpipe.errors import ConfigError

FEATURES_OF_SCALE_1 = 128  # of a head with objective.head_scale


def make_head(
    alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig, last_width: int | None = None
) -> nn.Module:
    """The head ``config.head`` for alpha of ``alpha_shape`` (without the batch); gives [B, num_classes].

    ``last_width`` is how many channels the network ends with, for heads that end so too (``networks.last_width``).
    """
    if len(alpha_shape) != 3:
        return _linear_on_means(alpha_shape, num_classes, config)
    if config.head_width is None:
        config = replace(config, head_width=last_width)
    return HEADS[config.head](alpha_shape, num_classes, config)


class ScaledLinear(nn.Linear):
    """A linear layer on F features f that reads f * sqrt(128 / F).

    With the scale s its gradients are s times those of a plain layer and count s times in its scores: a step of rate lr
    is one of rate lr * s^2 there, whatever F. Names and initial values are those of the plain layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * sqrt(FEATURES_OF_SCALE_1 / self.in_features))


def _reading(features: int, outputs: int, config: ObjectiveConfig) -> nn.Linear:
    """The linear layer of a head that reads the features."""
    return (ScaledLinear if config.head_scale else nn.Linear)(features, outputs)


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
    return nn.Sequential(pool, nn.Flatten(1), _reading(features, num_classes, config))


def _mlp(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig) -> nn.Module:
    pool, features = _pool(alpha_shape, config.head_features)
    hidden = _reading(features, config.head_hidden, config)
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
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), _reading(alpha_shape[0], num_classes, config))


def _strided(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig) -> nn.Module:
    """What is left of the network, in short: every 3x3 convolution halves the positions and doubles the channels, until
    they are as many as the network ends with. One position needs no more than a 1x1 convolution."""
    if config.head_width is None:
        raise ConfigError(
            "objective.head is strided, but the network does not tell how wide it ends: its last unit has no linear "
            "layer; use --set objective.head_width=512, or as many channels as it has"
        )
    (channels, *positions), layers = alpha_shape, list[nn.Module]()
    if config.head_reduce is not None and config.head_reduce < channels:
        layers += _convolution(channels, config.head_reduce, kernel=1, stride=1)
        channels = config.head_reduce
    while channels < config.head_width:
        wider = min(2 * channels, config.head_width)
        kernel, stride = (1, 1) if max(positions) == 1 else (3, 2)
        layers += _convolution(channels, wider, kernel, stride)
        channels, positions = wider, [-(-side // stride) for side in positions]
    return nn.Sequential(*layers, *_gap((channels, *positions), num_classes, config).children())


def _convolution(channels: int, to: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, to, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(to), nn.ReLU()


HEADS: dict[str, Callable[[Sequence[int], int, ObjectiveConfig], nn.Module]] = {
    "linear": _linear,
    "mlp": _mlp,
    "conv": _conv,
    "narrow": _narrow,
    "gap": _gap,
    "strided": _strided,
}


class _TokenMean(nn.Module):
    """[B, T, C] to [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1) if x.dim() == 3 else x


def _linear_on_means(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig) -> nn.Module:
    """For tokens [T, C] and vectors [C], which have no positions to pool."""
    return nn.Sequential(_TokenMean(), _reading(alpha_shape[-1], num_classes, config))
