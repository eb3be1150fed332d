"""Data as a script has them: tensors, which stay in memory, or torch Datasets, whose items are read as they are needed.

Shapes: N images of a split, B of a batch, C channels, H x W positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from bllpipe.config.schema import DataConfig
from bllpipe.errors import DataError
from bllpipe.run.data.sets import Arrays, GivenData, LabelSet, MemoryImages, Split
from bllpipe.run.data.spec import DataSpec, check_labels
from bllpipe.run.digest import part_digest

Array = Tensor | np.ndarray[Any, Any]
Given = Dataset[Any] | tuple[Array, Array]  # one split
Data = tuple[Given, Given] | str
SPLITS: tuple[Split, Split] = ("train", "test")
MOST_COMPARED = 64  # items of a split whose labels tell whether two ranks have the same data
NEEDED = "needed is (train, test), each a pair (images, labels) of tensors or a torch Dataset of (image, label)"


def given_data(data: Data) -> tuple[str, GivenData | None]:
    """``data.name``, and what stands in its place; DataError for what cannot be trained on."""
    if isinstance(data, str):
        return data, None
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise DataError(f"the data are {_kind(data)}; {NEEDED}")
    pairs = [_tensors(split) for split in data]
    if pairs[0] is not None and pairs[1] is not None:
        return "given", _in_memory(pairs[0], pairs[1])
    for split, name in zip(data, SPLITS, strict=True):
        if not (hasattr(split, "__getitem__") and hasattr(split, "__len__")) or isinstance(split, (Tensor, np.ndarray)):
            raise DataError(f"the {name} split is {_kind(split)}; {NEEDED}")
    return "given", ItemData(*data)


@dataclass(frozen=True)
class TensorData:
    """A data set in memory."""

    arrays: Arrays

    @property
    def is_float(self) -> bool:
        return self.arrays.train_NCHW.dtype != torch.uint8

    def images(self, data: DataConfig) -> MemoryImages:
        return MemoryImages(self.arrays, data)

    def labels(self) -> LabelSet:
        return LabelSet(self.arrays.train_N, self.arrays.test_N, self.arrays.num_classes)

    def digest(self) -> str:
        """SHA-256 (hex) of all labels."""
        return part_digest({"train": self.arrays.train_N, "test": self.arrays.test_N})


class ItemData:
    """Two torch Datasets of (float32 tensor, label)."""

    is_float = True

    def __init__(self, train: Any, test: Any) -> None:
        self._sets: dict[Split, Any] = {"train": train, "test": test}

    def images(self, data: DataConfig) -> ItemImages:
        return ItemImages(self._sets, self._labels.num_classes)

    def labels(self) -> LabelSet:
        return self._labels

    @cached_property
    def _labels(self) -> LabelSet:
        """Of every item; a set that knows its ``targets``, as those of torchvision, is not read for it."""
        train_N, test_N = (torch.tensor(_targets(self._sets[split]), dtype=torch.int64) for split in SPLITS)
        return LabelSet(train_N, test_N, check_labels(train_N, test_N, "the data"))

    def digest(self) -> str:
        """SHA-256 (hex) of the lengths and of some labels."""
        return part_digest({split: torch.tensor(_some_labels(self._sets[split])) for split in SPLITS})


class ItemImages:
    """An ImageSet that reads every item when it is wanted."""

    def __init__(self, sets: dict[Split, Any], num_classes: int) -> None:
        self._sets = sets
        self._shape = tuple(_item(sets["train"], "train", 0).shape)
        self.spec = DataSpec(len(sets["train"]), len(sets["test"]), self._shape, num_classes)
        self.mean, self.std = list[float](), list[float]()

    def batches(self, wanted: Iterable[tuple[Split, Tensor]]) -> Iterator[Tensor]:
        for split, index_B in wanted:
            yield torch.stack([self._read(split, number) for number in index_B.tolist()])

    def _read(self, split: Split, number: int) -> Tensor:
        image = _item(self._sets[split], split, number)
        if tuple(image.shape) != self._shape:
            raise DataError(
                f"{split} item {number} has the shape {list(image.shape)}, but the first one {list(self._shape)}; "
                f"needed is one shape for all: resize in the set's transform"
            )
        return image


def _item(dataset: Any, split: Split, number: int) -> Tensor:
    """The image of one item, float32."""
    image = dataset[number][0]
    if not isinstance(image, Tensor) or not image.is_floating_point():
        raise DataError(
            f"{split} item {number} is {_kind(image)}; needed is a float tensor: give the set "
            f"transform=torchvision.transforms.ToTensor(), or pass uint8 tensors (images, labels)"
        )
    return image.float()


def _targets(dataset: Any) -> Sequence[int]:
    known = getattr(dataset, "targets", None)
    if known is not None and getattr(dataset, "target_transform", None) is None and len(known) == len(dataset):
        return [int(label) for label in known]
    return [int(dataset[number][1]) for number in range(len(dataset))]


def _some_labels(dataset: Any) -> list[int]:
    numbers = range(0, len(dataset), max(1, len(dataset) // MOST_COMPARED))
    return [len(dataset), *(int(dataset[number][1]) for number in numbers)]


def _tensors(split: Any) -> tuple[Tensor, Tensor] | None:
    """Images and labels, if the split is made of tensors or arrays."""
    parts = split.tensors if isinstance(split, TensorDataset) else split
    is_pair = isinstance(parts, (tuple, list)) and len(parts) == 2
    if not is_pair or not all(isinstance(part, (Tensor, np.ndarray)) for part in parts):
        return None
    return torch.as_tensor(parts[0]), torch.as_tensor(parts[1])


def _in_memory(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> TensorData:
    (train_x, train_N), (test_x, test_N) = train, test
    for name, images, labels in (("train", train_x, train_N), ("test", test_x, test_N)):
        _check_split(name, images, labels)
    if train_x.shape[1:] != test_x.shape[1:] or (train_x.dtype == torch.uint8) != (test_x.dtype == torch.uint8):
        raise DataError(f"the train images are {_kind(train_x)}, the test images {_kind(test_x)}; needed is one form")
    num_classes = check_labels(train_N, test_N, "the data")
    train_x, test_x = (x if x.dtype == torch.uint8 else x.float() for x in (train_x, test_x))
    return TensorData(Arrays(train_x, train_N.long(), test_x, test_N.long(), num_classes))


def _check_split(name: str, images: Tensor, labels: Tensor) -> None:
    if not (images.is_floating_point() and images.dim() >= 2) and not (
        images.dtype == torch.uint8 and images.dim() == 4
    ):
        raise DataError(
            f"the {name} images are {_kind(images)}; needed are floats [N, ...], which are taken as they are, or uint8 "
            f"[N, C, H, W], which are normalised; images without channels become such with images.unsqueeze(1)"
        )
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"the {name} labels are {_kind(labels)}; needed are whole numbers [N], the classes from 0")
    if len(images) != len(labels):
        raise DataError(f"the {name} split has {len(images)} images, but {len(labels)} labels; needed is one for each")


def _kind(thing: Any) -> str:
    """``a tuple of 3``, ``uint8 [10, 28, 28]``, ``a PILImage``."""
    if isinstance(thing, Tensor):
        return f"{str(thing.dtype).removeprefix('torch.')} {list(thing.shape)}"
    length = f" of {len(thing)}" if isinstance(thing, (tuple, list)) else ""
    return f"a {type(thing).__name__}{length}"
