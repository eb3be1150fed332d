"""Generated images: a pure function of the seed, of the sizes asked for, and learnable."""

import pytest
import torch

from bllpipe.config.schema import DataConfig
from bllpipe.data.base import Arrays
from bllpipe.data.registry import synthetic


def generated(seed: int = 0, images: int = 40, classes: int = 5, size: int = 8) -> Arrays:
    data = DataConfig(name="synthetic", synthetic_images=images, synthetic_classes=classes, image_size=size)
    return synthetic(data, seed)


@pytest.mark.parametrize(("images", "num_test"), [(40, 10), (7, 1), (1, 1)])
@pytest.mark.parametrize("size", [4, 9])
def test_sizes_classes_and_types(images: int, num_test: int, size: int) -> None:
    arrays = generated(images=images, size=size)
    assert arrays.train_NCHW.shape == (images, 3, size, size) and arrays.test_NCHW.shape == (num_test, 3, size, size)
    assert arrays.train_N.shape == (images,) and arrays.test_N.shape == (num_test,)
    assert arrays.train_NCHW.dtype == arrays.test_NCHW.dtype == torch.uint8
    assert arrays.train_N.dtype == arrays.test_N.dtype == torch.int64
    assert arrays.num_classes == 5


def test_every_class_occurs_and_no_other() -> None:
    arrays = generated(images=400)
    assert arrays.train_N.unique().tolist() == arrays.test_N.unique().tolist() == [0, 1, 2, 3, 4]


def test_equal_seeds_give_equal_bits_whatever_else_was_drawn() -> None:
    first = generated(3)
    torch.manual_seed(1)
    torch.rand(5)
    again = generated(3)
    assert torch.equal(first.train_NCHW, again.train_NCHW) and torch.equal(first.train_N, again.train_N)
    assert torch.equal(first.test_NCHW, again.test_NCHW) and torch.equal(first.test_N, again.test_N)


def test_another_seed_gives_other_images_and_labels() -> None:
    first, second = generated(3), generated(4)
    assert not torch.equal(first.train_NCHW, second.train_NCHW)
    assert not torch.equal(first.train_N, second.train_N)


def test_both_splits_are_drawn_apart() -> None:
    arrays = generated(images=40)
    assert not torch.equal(arrays.train_N[:10], arrays.test_N)


def test_no_image_occurs_twice() -> None:
    arrays = generated(images=200, size=4)
    images = {tuple(image.flatten().tolist()) for image in (*arrays.train_NCHW, *arrays.test_NCHW)}
    assert len(images) == 250


def test_the_nearest_class_mean_tells_the_classes_apart() -> None:
    arrays = generated(images=400, size=16)
    train, test = arrays.train_NCHW.flatten(1).double(), arrays.test_NCHW.flatten(1).double()
    means = torch.stack([train[arrays.train_N == label].mean(0) for label in range(5)])
    accuracy = (torch.cdist(test, means).argmin(1) == arrays.test_N).double().mean()
    assert accuracy > 0.95
