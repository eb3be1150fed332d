"""Augmentation recipes of ``data.augment.recipe``: torchvision's transforms v2 on one image, seeded by the image.

torchvision draws from torch's global generator, so a recipe is used in a process of its own alone. Its import takes
seconds: only that process and the rank that starts it pay for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from bllpipe.data.decoding import in_mode, reduced

ERASED = 0.1  # probability of random erasing, as in torchvision's own recipe


class Recipe:
    """From a training image to uint8 [C, H, W], a pure function of image and seed."""

    def __init__(self, name: str, height: int, width: int, mean: Sequence[float]) -> None:
        size, flip = (height, width), v2.RandomHorizontalFlip()
        self._crop = None if name == "cifar" else v2.RandomResizedCrop(size)
        steps: dict[str, list[Any]] = {
            "cifar": [v2.RandomCrop(size, padding=max(1, width // 8)), flip, v2.PILToTensor()],
            "imagenet": [flip, v2.PILToTensor()],
            "trivial": [
                flip,
                v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR),
                v2.PILToTensor(),
                v2.RandomErasing(p=ERASED, value=[round(255 * value) for value in mean]),
            ],
        }
        self._rest = v2.Compose(steps[name])
        self._size, self._mode = size, "L" if len(mean) == 1 else "RGB"

    @property
    def crops(self) -> bool:
        """Whether it chooses a part of the whole image; the others take the centre crop."""
        return self._crop is not None

    def __call__(self, image: Image.Image, seed: int) -> Tensor:
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which also asks for the GPUs
        if self._crop is not None:
            drawn = self._crop.make_params([image])  # only the size is read, which the header says
            left, top, width, height = (drawn[key] for key in ("left", "top", "width", "height"))
            box = left, top, left + width, top + height
            box = reduced(image, box, min(width // self._size[1], height // self._size[0]))
            image = in_mode(image.crop(box), self._mode).resize(self._size[::-1], Image.Resampling.BILINEAR)
        result: Tensor = self._rest(image)
        return result
