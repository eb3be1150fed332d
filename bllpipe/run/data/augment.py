"""Random changes of a batch of images, in batched tensor code and without state.

All draws come from one CPU generator, so any device makes the same choices. Shapes: B images, C channels, H x W.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from bllpipe.config.schema import AugmentConfig
from bllpipe.run.data.sending import sent


def augment(images_BCHW: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Cropped, mirrored and rotated uint8 images of the same shape, as ``config`` asks."""
    if config.crop_padding:
        images_BCHW = _crop(images_BCHW, config.crop_padding, generator)
    if config.flip:
        images_BCHW = _flip(images_BCHW, generator)
    if config.rotation:
        images_BCHW = _rotate(images_BCHW, config.rotation, generator)
    return images_BCHW


def normalise(images_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """float32 images: pixels in 0..1, less ``mean``, divided by ``std``, a value a channel."""
    mean_C, std_C = torch.tensor(mean), torch.tensor(std)
    scale_C, shift_C = 1 / (255 * std_C), -mean_C / std_C
    scaled = images_BCHW.to(torch.float32).mul_(sent(scale_C, images_BCHW.device).view(-1, 1, 1))
    return scaled.add_(sent(shift_C, images_BCHW.device).view(-1, 1, 1)).contiguous()


def _crop(images_BCHW: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """A window of the original size somewhere in the zero-padded image: one gather for the whole batch."""
    batch, _, height, width = images_BCHW.shape
    corners = torch.stack([torch.arange(batch), *torch.randint(0, 2 * padding + 1, (2, batch), generator=generator)])
    number_B, top_B, left_B = sent(corners, images_BCHW.device)
    windows = pad(images_BCHW, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # [B, C, top, left, H, W]
    return windows[number_B, :, top_B, left_B]


def _flip(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Every second image, on average, mirrored left and right."""
    mirrored_B = torch.rand(len(images_BCHW), generator=generator) < 0.5
    return torch.where(sent(mirrored_B, images_BCHW.device).view(-1, 1, 1, 1), images_BCHW.flip(3), images_BCHW)


def _rotate(images_BCHW: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Each image turned by its own angle, bilinear, zeros from outside.

    The grid's coordinates go from -1 to 1 along both sides, so the sines carry the ratio of the sides.
    """
    height, width = images_BCHW.shape[2:]
    angle_B = (2 * torch.rand(len(images_BCHW), generator=generator) - 1) * degrees * pi / 180
    cos_B, sin_B, zero_B = angle_B.cos(), angle_B.sin(), torch.zeros_like(angle_B)
    rows = [
        torch.stack([cos_B, -sin_B * height / width, zero_B], 1),
        torch.stack([sin_B * width / height, cos_B, zero_B], 1),
    ]
    turns = sent(torch.stack(rows, 1), images_BCHW.device)
    grid = affine_grid(turns, list(images_BCHW.shape), align_corners=False)
    turned = grid_sample(images_BCHW.to(torch.float32), grid, align_corners=False)
    return turned.round_().clamp_(0, 255).to(torch.uint8)
