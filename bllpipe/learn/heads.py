"""Local heads: class scores of a block that is not the last, from its own activations.

The pool before the head matters most: a linear layer on a pool of about 4,096 features keeps positions (Nokland &
Eidnes 2019), a global average does not, unless convolutions precede it that end as wide as the network (``strided``),
or residual units like the last ones (``auglocal``).
The more features a linear layer has, the smaller its stable learning rate: momentum SGD needs about
lr < 3.8 / (0.1 L), L the largest eigenvalue of the features' second moment, which grows with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod, sqrt

import torch
from torch import Tensor, nn

from bllpipe.config.schema import ObjectiveConfig
from bllpipe.errors import ConfigError
from bllpipe.learn.distributions import CELLS, num_channels
from bllpipe.models.registry import check_batches, single_value_norms
from bllpipe.models.resnet import LaterUnit

Later = Sequence[LaterUnit]
FEATURES_OF_SCALE_1 = 128  # of a head with objective.head_scale


def make_head(
    alpha_shape: Sequence[int],
    num_classes: int,
    config: ObjectiveConfig,
    last_width: int | None = None,
    later: Later = (),
) -> nn.Module:
    """The head ``config.head`` for alpha of ``alpha_shape`` (without the batch); its output is [B, num_classes].

    ``last_width`` is the number of channels at the end of the network, for ``strided``; ``later`` are the residual
    units of the network after the block, for ``auglocal`` (models/registry.py has both).
    """
    if len(alpha_shape) != 3:  # tokens [T, C] and vectors [C] have no positions to pool
        read = _ClassToken() if len(alpha_shape) == 2 and config.tokens == "class" else _TokenMean()
        return nn.Sequential(read, _feature_layer(alpha_shape[-1], num_classes, config))
    if config.head_width is None:
        config = replace(config, head_width=last_width)
    if config.head in HEADS_OF_UNITS:
        return HEADS_OF_UNITS[config.head](alpha_shape, num_classes, config, later)
    return HEADS[config.head](alpha_shape, num_classes, config)


@torch.no_grad()
def check_norms(head: nn.Module, alpha_shape: Sequence[int], smallest_batch: int, unit: str) -> None:
    """Raises ConfigError if a batch norm of the head behind ``unit`` has no variance in training batches of
    ``smallest_batch`` images."""
    if smallest_batch > 1:
        return
    device = next(head.parameters()).device
    with single_value_norms(head) as norms:
        head.eval()(torch.zeros(1, *alpha_shape, device=device))
    head.train()
    check_batches(norms, smallest_batch, 2, f"the head of {unit}")  # a test batch takes the running statistics


def message_size(config: ObjectiveConfig, alpha_shape: Sequence[int], head: nn.Module) -> int:
    """The numbers of the message of one image: what ``config.message`` reads from alpha, or from the ``head``'s."""
    if config.message == "embedding" and len(alpha_shape) == 3:
        *_, last = layers_of(head)
        if not isinstance(last, nn.Linear):
            raise ConfigError(
                f"objective.message=embedding and objective.contrast_weight: expected a head that ends with a linear "
                f"layer, got a {type(last).__name__} at the end of {config.head}; use an nn.Sequential that does"
            )
        return last.in_features
    num_cells = prod(min(CELLS, side) for side in alpha_shape[1:]) if len(alpha_shape) == 3 else 1
    return num_channels(alpha_shape) * (num_cells if config.message == "cells" else 1)


def embed(head: nn.Module, alpha: Tensor) -> Tensor:
    """The embedding [B, F] of a head: what its last linear layer reads."""
    for layer in layers_of(head)[:-1]:
        alpha = layer(alpha)
    return alpha


def classify(head: nn.Module, embedding_BF: Tensor) -> Tensor:
    """Class scores [B, K] of an embedding: ``classify(head, embed(head, alpha))`` is ``head(alpha)``."""
    return layers_of(head)[-1](embedding_BF)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def layers_of(head: nn.Module) -> list[nn.Module]:
    """The layers of a head in their order; a head is a sequence of layers and of such sequences."""
    if not isinstance(head, nn.Sequential):
        return [head]
    return [layer for part in head for layer in layers_of(part)]


class ScaledLinear(nn.Linear):
    """A linear layer on F features f * sqrt(128 / F); up to 128 are read as they are.

    With the scale s its gradients are s times those of a plain layer and enter its scores s times: a step with rate lr
    is one with rate lr * s^2 there, for any F. Names and initial values are those of the plain layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.scale)

    @property
    def scale(self) -> float:
        return min(1.0, sqrt(FEATURES_OF_SCALE_1 / self.in_features))


def _feature_layer(features: int, outputs: int, config: ObjectiveConfig) -> nn.Linear:
    return (ScaledLinear if config.is_head_scaled else nn.Linear)(features, outputs)


def pooled_shape(alpha_shape: Sequence[int], max_features: int) -> tuple[int, int]:
    """The largest square pool of [C, H, W], at least 1x1, with at most ``max_features`` features."""
    channels, height, width = alpha_shape
    side = max(1, int((max_features / channels) ** 0.5))
    return min(side, height), min(side, width)


def _pool(alpha_shape: Sequence[int], max_features: int) -> tuple[nn.Module, int]:
    shape = pooled_shape(alpha_shape, max_features)
    pool: nn.Module = nn.Identity() if shape == tuple(alpha_shape[1:]) else nn.AdaptiveAvgPool2d(shape)
    return pool, alpha_shape[0] * prod(shape)


def _linear(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig) -> nn.Module:
    pool, features = _pool(alpha_shape, config.head_features)
    return nn.Sequential(pool, nn.Flatten(1), _feature_layer(features, num_classes, config))


def _mlp(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig) -> nn.Module:
    pool, features = _pool(alpha_shape, config.head_features)
    hidden = _feature_layer(features, config.head_hidden, config)
    return nn.Sequential(pool, nn.Flatten(1), hidden, nn.ReLU(), nn.Linear(config.head_hidden, num_classes))


def _conv(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig) -> nn.Module:
    channels, height, width = alpha_shape
    layers: list[nn.Module] = []
    for index in range(config.head_layers):
        stride = 2 if index else 1
        height, width = -(-height // stride), -(-width // stride)
        layers += _convolution(channels, channels, kernel=3, stride=stride)
    return nn.Sequential(*layers, _linear((channels, height, width), num_classes, config))


def _narrow(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig) -> nn.Module:
    """A convolutional head of little cost for any width of the block: a 1x1 convolution reduces the channels first."""
    channels, height, width = alpha_shape
    reduced = min(channels, config.head_hidden)
    reduce = _convolution(channels, reduced, kernel=1, stride=1)
    return nn.Sequential(*reduce, _conv((reduced, height, width), num_classes, config))


def _gap(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), _feature_layer(alpha_shape[0], num_classes, config))


def _strided(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig) -> nn.Module:
    """A short version of the rest of the network: every 3x3 convolution halves the positions and doubles the channels,
    up to the last width of the network. One position takes a 1x1 convolution."""
    if config.head_width is None:
        raise ConfigError(
            "objective.head is strided, but the last width of the network is unknown: its last unit has no linear "
            "layer; use --set objective.head_width=512, or the number of channels that it has"
        )
    (channels, *positions), layers = alpha_shape, list[nn.Module]()
    if config.head_reduce is not None and config.head_reduce < channels:
        layers += _convolution(channels, config.head_reduce, kernel=1, stride=1)
        channels = config.head_reduce
    while channels < config.head_width:
        doubled = min(2 * channels, config.head_width)
        kernel, stride = (1, 1) if max(positions) == 1 else (3, 2)
        layers += _convolution(channels, doubled, kernel, stride)
        channels, positions = doubled, [-(-side // stride) for side in positions]
    return nn.Sequential(*layers, *_gap((channels, *positions), num_classes, config).children())


def _auglocal(alpha_shape: Sequence[int], num_classes: int, config: ObjectiveConfig, later: Later) -> nn.Module:
    """Residual units like some of those after the block, evenly spaced up to the last, each with the strides of all
    that it stands for (Ma et al. 2024)."""
    if not later:
        raise ConfigError(
            "objective.head is auglocal, but no residual unit comes after this block; use --set objective.head=gap"
        )
    (channels, *positions), layers = alpha_shape, list[nn.Module]()
    num_units, start = min(config.head_units, len(later)), 0
    for number in range(1, num_units + 1):
        end = number * len(later) // num_units
        stride = prod(unit.stride for unit in later[start:end])
        layers.append(later[end - 1].build(channels, stride))
        channels, positions = later[end - 1].out_channels, [-(-side // stride) for side in positions]
        start = end
    return nn.Sequential(*layers, *_gap((channels, *positions), num_classes, config).children())


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


HEADS: dict[str, Callable[[Sequence[int], int, ObjectiveConfig], nn.Module]] = {
    "linear": _linear,
    "mlp": _mlp,
    "conv": _conv,
    "narrow": _narrow,
    "gap": _gap,
    "strided": _strided,
}
# Heads that are made of units like those after the block.
HEADS_OF_UNITS: dict[str, Callable[[Sequence[int], int, ObjectiveConfig, Later], nn.Module]] = {"auglocal": _auglocal}


class _ClassToken(nn.Module):
    """[B, T, C] to the first token, [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class _TokenMean(nn.Module):
    """[B, T, C] to [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1) if x.dim() == 3 else x
