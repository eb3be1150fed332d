"""Activations in 8 bits, with a scale and an offset for each channel of a message: ``precision.wire=int8``.

    offset_C = min_C,  scale_C = (max_C - min_C) / 255     minimum and maximum of the channel in the message
    code     = round((alpha - offset_C) / scale_C)         one byte, 0 to 255
    received = code * scale_C + offset_C                   at most scale_C / 2 from alpha, but for rounding

This is the affine quantisation of Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (CVPR 2018), with a range per channel. Minimum and maximum are exact in any order,
and all else is elementwise in float32, so all engines have the same bits. The range is that of a message, and so of a
shard: it depends on the number of shards, never on their owners.

A channel with NaN or Inf arrives as NaN: its range is not finite, so the checks of the receiver still find it.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 255  # code


def num_channels(shape: tuple[int, ...]) -> int:
    """The channels of alpha of ``shape``, without the batch: [C], tokens [T, C] or maps [C, H, W]."""
    return shape[_channel_dim(len(shape) + 1) - 1]


def quantise(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, uint8 of the shape of ``alpha`` ([B, C], [B, T, C] or [B, C, H, W]), and scales and offsets, float32
    [2, C]."""
    x = alpha.detach().float()
    dims = [dim for dim in range(x.dim()) if dim != _channel_dim(x.dim())]
    low_C, high_C = x.amin(dim=dims), x.amax(dim=dims)
    scale_C = (high_C - low_C) / LARGEST
    scale_C = scale_C.where(scale_C != 0, 1.0)  # a constant channel has code 0
    codes = (x - _along(low_C, x)).div_(_along(scale_C, x)).round_().clamp_(0, LARGEST)
    return codes.to(torch.uint8), torch.stack([scale_C, low_C])


def dequantise(codes: Tensor, ranges_2C: Tensor) -> Tensor:
    """The activations of ``quantise``'s codes and ranges, float32."""
    scale_C, low_C = ranges_2C
    return codes.float().mul_(_along(scale_C, codes)).add_(_along(low_C, codes))


def _channel_dim(num_dims: int) -> int:
    """Tokens [B, T, C] have their channels last, all others behind the batch."""
    return 2 if num_dims == 3 else 1


def _along(values_C: Tensor, alpha: Tensor) -> Tensor:
    """``values_C`` in a shape that broadcasts along the channels of ``alpha``."""
    return values_C.view([-1 if dim == _channel_dim(alpha.dim()) else 1 for dim in range(alpha.dim())])
