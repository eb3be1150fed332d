"""Data sets of Hugging Face's library ``datasets``: a DatasetDict, or a pair of Datasets, with a column of images and
one of classes. The library itself is not imported: the objects are recognised by their class.

Images are decoded as those of a folder are, from the bytes that the set holds, in processes if ``data.workers`` says
so, and resized to ``data.image_size``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from bllpipe.config.schema import DataConfig
from bllpipe.data.base import LabelSet, Split, labels_sha256
from bllpipe.data.catalog import TEST_FOLDERS, check_labels
from bllpipe.data.decoded_images import DecodedImages
from bllpipe.data.npz import label_array
from bllpipe.errors import DataError
from bllpipe.utils.tensors import part_digest

LABELS = ("label", "labels")  # names of a column of numbers that is no ClassLabel


def is_hub_dataset(data: Any) -> bool:
    """Whether it is a Dataset of this library, and not one of torch or of a module of the same name."""
    return any(f"{base.__module__}.{base.__name__}" == "datasets.arrow_dataset.Dataset" for base in type(data).__mro__)


def hub_data(data: Any) -> HubData | None:
    """The data of a script, if they are of this library; DataError if they cannot be trained on."""
    if is_hub_dataset(data):
        raise DataError(
            "the data are one Dataset; expected a DatasetDict with the splits train and test, or the pair of both; use "
            "data.train_test_split(test_size=0.2, seed=0)"
        )
    if isinstance(data, Mapping) and data and all(map(is_hub_dataset, data.values())):
        test = next((name for name in TEST_FOLDERS if name in data), None)
        if "train" not in data or test is None:
            raise DataError(
                f"the data have the splits {', '.join(map(str, data)):.200}; expected train, and one of "
                f"{', '.join(TEST_FOLDERS)}; use the pair (train, test), or data['train'].train_test_split(0.2, seed=0)"
            )
        return HubData(data["train"], data[test])
    if isinstance(data, Sequence) and len(data) == 2 and all(map(is_hub_dataset, data)):
        return HubData(*data)
    return None


class HubData:
    """Two Datasets of images and labels."""

    is_float = False

    def __init__(self, train: Any, test: Any) -> None:
        self._sets: dict[Split, Any] = {"train": train, "test": test}
        self._columns: dict[Split, tuple[str, str]] = {
            split: _columns(dataset, split) for split, dataset in self._sets.items()
        }
        names = {split: _class_names(self._sets[split], self._columns[split][1]) for split in self._sets}
        if names["train"] != names["test"]:
            raise DataError(
                f"the classes are {names['train']!s:.100} in the train split, and {names['test']!s:.100} in the test "
                f"split; expected the same in both; use cast_column"
            )

    def images(self, data: DataConfig, seed: int = 0) -> DecodedImages:
        labels = self._labels
        files = HubFiles({split: _encoded(self._sets[split], self._columns[split][0]) for split in self._sets})
        digest = labels_sha256(labels.train_N, labels.test_N)
        return DecodedImages(files, labels, digest, data, seed, is_measured=True)

    def labels(self) -> LabelSet:
        return self._labels

    @cached_property
    def _labels(self) -> LabelSet:
        train_N, test_N = (self._label_N(split) for split in self._sets)
        return LabelSet(train_N, test_N, check_labels(train_N, test_N, "the data"))

    def _label_N(self, split: Split) -> torch.Tensor:
        name = self._columns[split][1]
        values = self._sets[split].select_columns([name]).with_format("numpy")[:][name]
        return torch.from_numpy(label_array(values, f"the {split} column {name}"))

    def digest(self) -> str:
        """SHA-256 (hex) of all labels."""
        return part_digest({"train": self._labels.train_N, "test": self._labels.test_N})


class HubFiles:
    """The encoded images of both splits, from rows {column: {bytes, path}}."""

    def __init__(self, sets: dict[Split, tuple[Any, str]]) -> None:
        self._sets = sets

    def file(self, split: Split, number: int) -> tuple[str, bytes | None]:
        dataset, column = self._sets[split]
        found = dataset[number][column] or {}
        content, path = found.get("bytes"), found.get("path")
        if content is not None:
            return f"{split} image {number}", bytes(content)
        if path is None:
            raise DataError(f"{split} image {number} is missing; remove the row, for example with filter")
        return str(path), None

    def __len__(self) -> int:
        return len(self._sets["train"][0])


def _encoded(dataset: Any, column: str) -> tuple[Any, str]:
    """The set without decoding its images, and without other columns."""
    plain = dataset.with_format(None).select_columns([column])
    return plain.cast_column(column, type(dataset.features[column])(decode=False)), column


def _columns(dataset: Any, split: Split) -> tuple[str, str]:
    """The names of the columns of images and of classes; DataError unless there is one of each."""
    if dataset.format["type"] == "custom":
        raise DataError(
            f"the {split} split has a transform, which would not be applied; use dataset.reset_format(), and "
            f"data.augment.recipe for the training images"
        )
    kinds = {name: type(feature).__name__ for name, feature in dataset.features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"] or [
        name for name in LABELS if name in kinds
    ]
    if len(images) != 1 or len(labels) != 1:
        found = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise DataError(
            f"the {split} split has the columns {found:.300}; expected one Image and one ClassLabel, or numbers named "
            f"label; use dataset.select_columns(['image', 'label']), or class_encode_column for text"
        )
    return images[0], labels[0]


def _class_names(dataset: Any, column: str) -> list[str] | None:
    """The names of a ClassLabel; None for numbers."""
    return getattr(dataset.features[column], "names", None)
