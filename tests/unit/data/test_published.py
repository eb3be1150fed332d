"""The digits: their fixed split, sizes and statistics."""

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor

from bllpipe.config.schema import DataConfig
from bllpipe.data.base import MEAN_AND_STD, Arrays, MemoryImages
from bllpipe.data.catalog import PUBLISHED
from bllpipe.data.registry import digits


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return digits()


def rows(images_NCHW: Tensor, labels_N: Tensor) -> list[tuple[int, ...]]:
    return [(label, *image.flatten().tolist()) for image, label in zip(images_NCHW, labels_N.tolist(), strict=True)]


def test_digits_have_their_sizes_and_types(arrays: Arrays) -> None:
    assert arrays.train_NCHW.shape == (1442, 1, 8, 8) and arrays.test_NCHW.shape == (355, 1, 8, 8)
    assert arrays.train_N.shape == (1442,) and arrays.test_N.shape == (355,)
    assert arrays.train_NCHW.dtype == arrays.test_NCHW.dtype == torch.uint8
    assert arrays.train_N.dtype == arrays.test_N.dtype == torch.int64
    assert arrays.train_NCHW.min() == 0 and arrays.train_NCHW.max() == 255


def test_a_fifth_of_every_digit_is_for_the_test(arrays: Arrays) -> None:
    train, test = arrays.train_N.bincount(), arrays.test_N.bincount()
    assert len(train) == len(test) == arrays.num_classes == 10
    assert test.tolist() == [count // 5 for count in (train + test).tolist()]


def test_both_splits_together_are_all_digits_once(arrays: Arrays) -> None:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # scikit-learn has no types

    raw = load_digits()
    pixels = torch.from_numpy(np.rint(raw.images / 16 * 255)).to(torch.uint8)
    found = rows(arrays.train_NCHW, arrays.train_N) + rows(arrays.test_NCHW, arrays.test_N)
    assert sorted(found) == sorted(rows(pixels, torch.from_numpy(raw.target)))
    assert not set(rows(arrays.train_NCHW, arrays.train_N)) & set(rows(arrays.test_NCHW, arrays.test_N))


def test_the_split_of_the_digits_is_fixed(arrays: Arrays) -> None:
    torch.manual_seed(1)
    again = digits()
    assert torch.equal(arrays.train_NCHW, again.train_NCHW) and torch.equal(arrays.train_N, again.train_N)
    assert torch.equal(arrays.test_NCHW, again.test_NCHW) and torch.equal(arrays.test_N, again.test_N)
    digest = hashlib.sha256(arrays.test_NCHW.numpy().tobytes()).hexdigest()  # runs compare only on the same split
    assert digest == "eee30e72ea8086aac8e2e1dbfab0b4466ab2d768e29d5596f58821ef3ed6f8cf"


def test_the_digits_are_as_large_as_is_said_before_they_are_read(arrays: Arrays) -> None:
    assert MemoryImages(arrays, DataConfig(name="digits")).spec == PUBLISHED["digits"]


def test_mean_and_deviation_of_the_digits_are_the_measured_ones(arrays: Arrays) -> None:
    pixels = arrays.train_NCHW.to(torch.float64) / 255
    (mean,), (std,) = MEAN_AND_STD["digits"]
    assert mean == pytest.approx(pixels.mean().item(), abs=1e-3)
    assert std == pytest.approx(pixels.std().item(), abs=1e-3)
