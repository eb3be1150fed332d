"""Data of a script's own: tensors, arrays and torch Datasets, and what is refused with words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

import bllpipe
from bllpipe.api.datasets import ItemData, TensorData, user_data
from bllpipe.config.schema import DataConfig
from bllpipe.data.loader import ImageSource
from bllpipe.data.registry import load_arrays, load_images, load_labels
from bllpipe.messages import Round

X, Y = torch.randn(8, 2, 4), torch.arange(8) % 2
BYTES = torch.randint(0, 256, (8, 1, 4, 4), dtype=torch.uint8)


class Items(Dataset[tuple[Any, int]]):
    """A map-style set that counts its reads."""

    def __init__(self, images: Any, labels: Tensor) -> None:
        self.images, self.labels, self.reads = images, labels, 0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        self.reads += 1
        return self.images[number], int(self.labels[number])


class Known(Items):
    """One that knows its targets, as torchvision's sets do."""

    @property
    def targets(self) -> list[int]:
        return [int(label) for label in self.labels]


def config(data: Any) -> DataConfig:
    name, given = user_data(data)
    return DataConfig(name=name, user_data=given)  # type: ignore[arg-type]  # given


@pytest.mark.parametrize(
    "data",
    [
        ((X, Y), (X[:4], Y[:4])),
        ((X.double().numpy(), Y.numpy().astype(np.int32)), (X[:4].half(), Y[:4].int())),
        (TensorDataset(X, Y), TensorDataset(X[:4], Y[:4])),
        (Items(X, Y), Items(X[:4], Y[:4])),
    ],
)
def test_floats_are_taken_as_they_are(data: Any) -> None:
    images, labels = load_images(config(data), seed=0), load_labels(config(data), seed=0)
    assert (images.spec.num_train, images.spec.num_test, images.spec.image_shape) == (8, 4, (2, 4))
    assert torch.equal(labels.train_N, Y) and labels.train_N.dtype == torch.int64 and labels.num_classes == 2
    source = ImageSource(images, iter([Round("evaluate", 0, size=4)]), 0, DataConfig().augment)
    torch.testing.assert_close(source.recv().alpha_BCHW, X[:4], atol=1e-3, rtol=1e-3)


def test_floats_are_not_augmented() -> None:
    images = load_images(config(((X, Y), (X, Y))), seed=0)
    rows = ImageSource(images, iter([Round("train", 0, size=8)]), 0, DataConfig().augment).recv().alpha_BCHW
    assert {tuple(row.flatten().tolist()) for row in rows} == {tuple(row.flatten().tolist()) for row in X}


def test_bytes_are_normalised_like_those_of_an_archive() -> None:
    images = load_images(config(((BYTES, Y), (BYTES, Y))), seed=0)
    pixels = ImageSource(images, iter([Round("evaluate", 0, size=8)]), 0, DataConfig().augment).recv().alpha_BCHW
    assert pixels.mean().abs() < 1e-5 and pixels.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_items_are_read_when_they_are_wanted() -> None:
    known, items = Known(X, Y), Items(X, Y)
    images, labels = load_images(config((known, known)), 0), load_labels(config((known, known)), 0)
    assert known.reads == 1, "for the shape"
    assert torch.equal(next(images.batches([("test", torch.tensor([5, 1]))])), X[[5, 1]])
    assert torch.equal(labels.test_N, Y) and known.reads == 3
    given = ItemData(items, items)
    assert torch.equal(given.labels().train_N, Y) and given.labels() is given.labels() and items.reads == 16


@pytest.mark.parametrize("kind", [lambda x, y: (x, y), Items])
def test_a_digest_tells_other_labels(kind: Any) -> None:
    digests = [user_data((kind(X, labels), kind(X, Y)))[1] for labels in (Y, Y.clone(), 1 - Y)]
    one, same, other = (each.digest() for each in digests if isinstance(each, TensorData | ItemData))
    assert one == same != other


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, Y, X), r"the data are a tuple of 3; expected \(train, test\), each a pair"),
        ((X, Y), r"the train split is float32 \[8, 2, 4\]; expected"),
        (((X, Y), iter([])), "the test split is a list_iterator; expected"),
        (((BYTES[:, 0], Y), (BYTES, Y)), r"the train images are uint8 \[8, 4, 4\]; .*images.unsqueeze\(1\)"),
        (((X.long(), Y), (X, Y)), r"the train images are int64 \[8, 2, 4\]; expected floats"),
        (((X, Y), (X, Y.float())), r"the test labels: expected whole numbers \[N\], .* got float32 \[8\]; convert"),
        (((X, Y), (X, Y.unsqueeze(1))), r"the test labels: .* got int64 \[8, 1\]; use labels.squeeze\(1\)"),
        (((X, Y[:7]), (X, Y)), "the train split has 8 images, but 7 labels; expected one for each"),
        (((X, Y), (X[:, :1], Y)), r"the train images are float32 \[8, 2, 4\], the test images float32 \[8, 1, 4\]"),
        (((X, Y * 0), (X, Y * 0)), "the data: only one class; expected at least 2"),
        (((X, Y), (X, Y + 1)), "the data: test label 2, but training labels only go up to 1"),
    ],
)
def test_what_cannot_be_trained_on(data: Any, message: str) -> None:
    with pytest.raises(bllpipe.DataError, match=message):
        user_data(data)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["a picture"] * 8, "train item 0 is a str; expected a float tensor: give the set transform=torchvision"),
        (BYTES, r"train item 0 is uint8 \[1, 4, 4\]; expected a float tensor"),
        ([*X[:7], X[0, :1]], r"train item 7 has the shape \[1, 4\], but the first one \[2, 4\]; expected one shape"),
    ],
)
def test_items_that_are_no_tensors_of_one_shape(images: Any, message: str) -> None:
    with pytest.raises(bllpipe.DataError, match=message):
        list(load_images(config((Items(images, Y), Items(X, Y))), 0).batches([("train", torch.arange(8))]))


def test_what_another_process_cannot_have() -> None:
    with pytest.raises(bllpipe.DataError, match="data.name is given: what a script passed to bllpipe.train"):
        load_arrays(DataConfig(name="given"), seed=0)
