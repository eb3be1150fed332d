"""Images made up on the spot: a random template a class, and noise. Learnable, and never twice the same."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bllpipe.config.schema import DataConfig
from bllpipe.randomness import stream
from bllpipe.run.data.sets import Arrays


def synthetic(data: DataConfig, seed: int) -> Arrays:
    """``synthetic_images`` RGB images and a quarter as many for the test, a pure function of ``seed``."""
    coarse = torch.rand(data.synthetic_classes, 3, 4, 4, generator=stream(seed, "templates"))
    templates_KCHW = interpolate(coarse, size=(data.image_size, data.image_size), mode="nearest")
    train = _split(templates_KCHW, data.synthetic_images, stream(seed, "synthetic", "train"))
    test = _split(templates_KCHW, max(data.synthetic_images // 4, 1), stream(seed, "synthetic", "test"))
    return Arrays(*train, *test, num_classes=data.synthetic_classes)


def _split(templates_KCHW: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    label_N = torch.randint(0, len(templates_KCHW), (count,), generator=generator)
    noise = torch.randn(count, *templates_KCHW.shape[1:], generator=generator)
    pixels = (templates_KCHW[label_N] + 0.3 * noise).clamp_(0, 1).mul_(255).round_()
    return pixels.to(torch.uint8), label_N
