"""Sets of images that are decoded as they are needed, or augmented by a recipe.

What a recipe does to an image depends on seed, epoch and image alone, so the batches are the same whatever the number
of processes and ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bllpipe.config.schema import DataConfig
from bllpipe.data.base import Arrays, LabelSet, Split, Statistics, labels_sha256, mean_and_std
from bllpipe.data.catalog import DataSpec
from bllpipe.data.decoding import Augmentation, Decoder, Files, Key, decoded
from bllpipe.data.statistics import sample_statistics
from bllpipe.errors import ConfigError
from bllpipe.utils.tensors import derived_seed


def make_recipe(data: DataConfig, height: int, width: int, mean: list[float]) -> Augmentation:
    """What ``data.augment.recipe`` names, for images of this size and mean by channel."""
    from bllpipe.data.recipes import Recipe  # and torchvision, whose import takes seconds

    return Recipe(data.augment.recipe, height, width, mean)


class DecodedImages:
    """An ImageSet over files: RGB of ``data.image_size``. ``digest`` is that of labels and names; without a recipe and
    ``is_measured`` the mean is that which is known for ``data.name``."""

    def __init__(
        self, files: Files, labels: LabelSet, digest: str, data: DataConfig, seed: int, is_measured: bool = False
    ) -> None:
        self._files, self._data, self._seed = files, data, seed
        self._recipe = data.augment.recipe
        self._is_measured = is_measured or self._recipe != "none"
        sizes = (len(labels.train_N), len(labels.test_N))
        self.spec = DataSpec(*sizes, (3, data.image_size, data.image_size), labels.num_classes, digest)

    @cached_property
    def _statistics(self) -> Statistics:
        return mean_and_std(self._data, 3, None, self._measure if self._is_measured else None)

    @property
    def mean(self) -> list[float]:
        return self._statistics[0]

    @property
    def std(self) -> list[float]:
        return self._statistics[1]

    def _measure(self) -> Statistics:
        return sample_statistics(self._files, Decoder(self._files, self._data), self._data.workers)

    def batches(self, wanted: Iterable[tuple[Split, Tensor]]) -> Iterator[Tensor]:
        if self._recipe == "none":
            return decoded(Decoder(self._files, self._data), keys(wanted), self._data.workers)
        recipe = make_recipe(self._data, self._data.image_size, self._data.image_size, self.mean)
        decoder = Decoder(self._files, self._data, recipe)
        wanted_keys = keys(wanted, self.spec.num_train, self._seed)
        return decoded(decoder, wanted_keys, max(1, self._data.workers), torch.Generator())


class ArrayItems(Dataset[Tensor]):
    """Images in memory with a recipe for those of the training; test images are returned as they are."""

    def __init__(self, arrays: Arrays, recipe: Augmentation) -> None:
        self._splits = {"train": arrays.train_NCHW, "test": arrays.test_NCHW}
        self._recipe = recipe

    def __getitem__(self, key: Key) -> Tensor:
        split, number, seed = key
        image_CHW = self._splits[split][number]
        if seed is None:
            return image_CHW
        pixels = image_CHW[0] if len(image_CHW) == 1 else image_CHW.permute(1, 2, 0).contiguous()
        return self._recipe(Image.fromarray(pixels.numpy()), seed)


class ArrayImages:
    """An ImageSet over arrays, augmented by a recipe."""

    def __init__(self, arrays: Arrays, data: DataConfig, seed: int) -> None:
        shape = tuple(arrays.train_NCHW.shape[1:])
        if shape[0] not in (1, 3):
            raise ConfigError(
                f"data.augment.recipe is {data.augment.recipe}, but the images have {shape[0]} channels; expected 1 or "
                f"3; use --set data.augment.recipe=none"
            )
        sizes = (len(arrays.train_N), len(arrays.test_N))
        self.spec = DataSpec(*sizes, shape, arrays.num_classes, labels_sha256(arrays.train_N, arrays.test_N))
        self.mean, self.std = mean_and_std(data, shape[0], arrays.train_NCHW)
        self._arrays, self._data, self._seed = arrays, data, seed

    def batches(self, wanted: Iterable[tuple[Split, Tensor]]) -> Iterator[Tensor]:
        _, height, width = self.spec.image_shape
        items = ArrayItems(self._arrays, make_recipe(self._data, height, width, self.mean))
        wanted_keys = keys(wanted, self.spec.num_train, self._seed)
        return decoded(items, wanted_keys, max(1, self._data.workers), torch.Generator())


def keys(wanted: Iterable[tuple[Split, Tensor]], num_train: int | None = None, seed: int = 0) -> Iterator[list[Key]]:
    """What a dataset is asked for. With the number of training images of a recipe, those have seeds, and the numbers of
    ``ImageSet.batches``."""
    for split, index_B in wanted:
        if num_train is None or split == "test":
            yield [(split, number, None) for number in index_B.tolist()]
        else:
            pairs = (divmod(number, num_train) for number in index_B.tolist())
            yield [(split, image, derived_seed(seed, "recipe", epoch, image)) for epoch, image in pairs]
