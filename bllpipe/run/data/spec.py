"""What every rank has to know about the data, without having any of it. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from bllpipe.config.schema import DataConfig
from bllpipe.errors import DataError

MAX_CLASSES = 100_000  # a last layer of 512 channels has 200 MB then


@dataclass(frozen=True)
class DataSpec:
    """Sizes of a data set: image counts of both splits, the shape of one image, [C, H, W] unless a script gives others,
    and the number of classes."""

    num_train: int
    num_test: int
    image_shape: tuple[int, ...]
    num_classes: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> DataSpec:
        fields = json.loads(text)
        return cls(**{**fields, "image_shape": tuple(fields["image_shape"])})


PUBLISHED = {
    "digits": DataSpec(1442, 355, (1, 8, 8), 10),
    "fashion_mnist": DataSpec(60_000, 10_000, (1, 28, 28), 10),
    "cifar10": DataSpec(50_000, 10_000, (3, 32, 32), 10),
    "cifar100": DataSpec(50_000, 10_000, (3, 32, 32), 100),
}


def check_given(data: DataConfig) -> None:
    """Raises DataError for data that a script passed as an object, where the script is not."""
    if data.name == "given" and data.given is None:
        raise DataError(
            "data.name is given: what a script passed to bllpipe.train as an object, and only that script has it; run "
            "the script, or name a set of your own with --set data.name=npz or imagefolder, and --set data.path=PATH"
        )


def check_labels(train_N: Any, test_N: Any, source: str) -> int:
    """The number of classes; DataError when there are no labels, negative ones, too many classes, or test labels beyond
    the training's.

    The labels may be arrays or tensors of whole numbers, [N].
    """
    for split, labels_N in (("train", train_N), ("test", test_N)):
        if len(labels_N) == 0:
            raise DataError(f"{source}: the {split} split has no images; needed is at least one")
        if int(labels_N.min()) < 0:
            raise DataError(f"{source}: {split} label {int(labels_N.min())}; needed are classes numbered from 0")
    classes = int(train_N.max()) + 1
    if classes > MAX_CLASSES:
        raise DataError(
            f"{source}: training label {classes - 1}; needed are classes numbered from 0, at most {MAX_CLASSES:,}"
        )
    if int(test_N.max()) >= classes:
        raise DataError(
            f"{source}: test label {int(test_N.max())}, but training labels only go up to {classes - 1}; "
            f"needed are the same classes in both"
        )
    if classes < 2:
        raise DataError(f"{source}: only one class; needed are at least 2")
    return classes
