"""A data set: labels of both splits, images in memory or elsewhere, their normalisation, copies to a device, and the
identity by which a checkpoint recognises it.

All random draws are made on the CPU and copied to the device of the images; the host does not wait for the copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from bllpipe.config.schema import DataConfig
from bllpipe.data.catalog import DataSpec
from bllpipe.errors import ConfigError

Split = Literal["train", "test"]
Statistics = tuple[list[float], list[float]]  # mean and standard deviation by channel
# Over the training pixels in 0..1.
MEAN_AND_STD: dict[str, Statistics] = {
    "digits": ([0.3050], [0.3763]),
    "mnist": ([0.1307], [0.3081]),
    "fashion_mnist": ([0.2860], [0.3530]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "cifar100": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    "imagefolder": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),  # ImageNet's
}


@dataclass(frozen=True)
class LabelSet:
    """The labels of both splits, int64 [N]."""

    train_N: Tensor
    test_N: Tensor
    num_classes: int


@dataclass(frozen=True)
class Arrays:
    """A whole data set in memory: images [N, C, H, W], uint8, or float32 [N, ...] that are not normalised, and int64
    labels [N] of both splits."""

    train_NCHW: Tensor
    train_N: Tensor
    test_NCHW: Tensor
    test_N: Tensor
    num_classes: int


class ImageSet(Protocol):
    """The images of a data set, as the first block reads them."""

    spec: DataSpec

    @property
    def mean(self) -> list[float]: ...

    @property
    def std(self) -> list[float]: ...

    def batches(self, wanted: Iterable[tuple[Split, Tensor]]) -> Iterator[Tensor]:
        """uint8 images [B, C, H, W] for every (split, index_B) in ``wanted``, in that order; or float32 [B, ...], which
        are neither augmented nor normalised. With a recipe, image i of epoch e has the number e * num_train + i."""


class UserData(Protocol):
    """A script's own data, in ``data.user_data``."""

    def images(self, data: DataConfig, seed: int) -> ImageSet: ...

    def labels(self) -> LabelSet: ...


class MemoryImages:
    """An ImageSet over arrays."""

    def __init__(self, arrays: Arrays, data: DataConfig) -> None:
        self._splits = {"train": arrays.train_NCHW, "test": arrays.test_NCHW}
        shape, sizes = tuple(arrays.train_NCHW.shape[1:]), (len(arrays.train_N), len(arrays.test_N))
        self.spec = DataSpec(*sizes, shape, arrays.num_classes, labels_sha256(arrays.train_N, arrays.test_N))
        self.mean, self.std = list[float](), list[float]()
        if arrays.train_NCHW.dtype == torch.uint8:
            self.mean, self.std = mean_and_std(data, shape[0], arrays.train_NCHW)

    def batches(self, wanted: Iterable[tuple[Split, Tensor]]) -> Iterator[Tensor]:
        return (self._splits[split][to_device(index_B, self._splits[split].device)] for split, index_B in wanted)

    def on(self, device: torch.device) -> MemoryImages:
        """The same images in the memory of ``device``."""
        moved = copy(self)
        moved._splits = {split: images.to(device) for split, images in self._splits.items()}
        return moved

    @property
    def num_bytes(self) -> int:
        return sum(images.nbytes for images in self._splits.values())


def mean_and_std(
    data: DataConfig, channels: int, train_NCHW: Tensor | None, measure: Callable[[], Statistics] | None = None
) -> Statistics:
    """Mean and standard deviation by channel: configured, what ``measure`` returns, known for the set, or measured on
    the training images."""
    known = None if measure else MEAN_AND_STD.get(data.name)
    if known is None and (data.mean is None or data.std is None):
        known = measure() if measure else None if train_NCHW is None else _measured(train_NCHW)
    assert known is not None or (data.mean is not None and data.std is not None), "one of the three is there"
    mean = known[0] if data.mean is None and known else data.mean or []
    std = known[1] if data.std is None and known else data.std or []
    for key, values in (("data.mean", mean), ("data.std", std)):
        if len(values) != channels:
            raise ConfigError(f"{key} has {len(values)} values, but the images have {channels} channels; give one each")
    if not all(value > 0 for value in std):
        raise ConfigError(f"data.std is {std}; expected numbers above 0")
    return mean, std


def _measured(train_NCHW: Tensor) -> Statistics:
    """Mean and deviation over at most the first 5,000 images; a channel without variation is divided by 1."""
    pixels = train_NCHW[:5000].to(torch.float64) / 255
    std = [value if value > 0 else 1.0 for value in pixels.std(dim=(0, 2, 3), correction=0).tolist()]
    return pixels.mean(dim=(0, 2, 3)).tolist(), std


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a CPU tensor to ``device`` in its current stream. torch keeps pinned memory until it is copied."""
    if tensor.device == device:
        return tensor
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def labels_sha256(train_N: Tensor, test_N: Tensor, names: Iterable[str] = ()) -> str:
    """A digest of the labels, int64 [N], in their order, and of the ``names`` of the images where they have some."""
    digest = hashlib.sha256()
    for labels_N in (train_N, test_N):
        digest.update(f"{len(labels_N)} labels\n".encode())
        digest.update(labels_N.cpu().contiguous().numpy().astype("<i8").tobytes())
    for name in names:
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def data_identity(spec: DataSpec) -> dict[str, Any]:
    """What a checkpoint holds of the data that it was trained on."""
    return {
        "num_train": spec.num_train,
        "num_test": spec.num_test,
        "image_shape": list(spec.image_shape),
        "num_classes": spec.num_classes,
        "labels_sha256": spec.labels_sha256,
    }


def describe_identity(record: Mapping[str, Any]) -> str:
    """``64 training and 16 test images [3, 8, 8] of 3 classes, labels 0a1b2c3d``."""
    return (
        f"{record.get('num_train')} training and {record.get('num_test')} test images {record.get('image_shape')} of "
        f"{record.get('num_classes')} classes, labels {str(record.get('labels_sha256'))[:8]}"
    )
