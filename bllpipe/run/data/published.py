"""Well-known data sets: scikit-learn's digits, and CIFAR and Fashion-MNIST through torchvision."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bllpipe.errors import DataError
from bllpipe.randomness import stream
from bllpipe.run.data.downloads import DOWNLOADS, SECONDS, missing
from bllpipe.run.data.sets import Arrays
from bllpipe.run.data.spec import DataSpec


def digits() -> Arrays:
    """1,797 handwritten digits of 8x8 pixels; a fixed fifth of every class is the test set, whatever the seed."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # scikit-learn has no types

    raw = load_digits()
    images_NCHW = torch.from_numpy(np.rint(raw.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels_N = torch.from_numpy(raw.target.astype(np.int64))
    shuffled = torch.randperm(len(labels_N), generator=stream(0, "digits"))
    is_test = torch.zeros(len(labels_N), dtype=torch.bool)
    for label in range(10):
        of_class = shuffled[labels_N[shuffled] == label]
        is_test[of_class[: len(of_class) // 5]] = True
    return Arrays(images_NCHW[~is_test], labels_N[~is_test], images_NCHW[is_test], labels_N[is_test], num_classes=10)


def torchvision_set(name: str, path: str) -> Arrays:
    """CIFAR-10, CIFAR-100 or Fashion-MNIST from the folder ``path``; downloads what is missing."""
    train, test = (_open(name, path, is_train) for is_train in (True, False))
    (train_NCHW, train_N), (test_NCHW, test_N) = _tensors(train), _tensors(test)
    return Arrays(train_NCHW, train_N, test_NCHW, test_N, num_classes=len(train.classes))


def _open(name: str, path: str, is_train: bool) -> Any:
    """torchvision's data set. Missing files are downloaded if there is a network; torchvision checks their digests."""
    from torchvision import datasets

    kind = getattr(datasets, DOWNLOADS[name].kind)
    with suppress(RuntimeError):  # not there, or damaged
        return kind(path, train=is_train, download=False)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)  # torchvision sets none
    try:
        return kind(path, train=is_train, download=True)
    except (OSError, RuntimeError) as error:
        raise missing(name, path, error) from error
    finally:
        socket.setdefaulttimeout(patience)


def stored(name: str, path: str) -> DataSpec:
    """The sizes of a set that lies in the folder ``path``, nothing of which is downloaded; DataError when a file is not
    there or has another digest than the published one."""
    from torchvision import datasets

    try:
        train, test = (
            getattr(datasets, DOWNLOADS[name].kind)(path, train=which, download=False) for which in (True, False)
        )
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise DataError(
            f"{name} in {path} is missing or damaged ({error}); delete it there, and use "
            f"bllpipe data fetch {name} --path {path}"
        ) from error
    (train_NCHW, train_N), (_, test_N) = _tensors(train), _tensors(test)
    channels, height, width = train_NCHW.shape[1:]
    return DataSpec(len(train_N), len(test_N), (channels, height, width), len(train.classes))


def _tensors(dataset: Any) -> tuple[Tensor, Tensor]:
    """uint8 [N, C, H, W] and int64 [N]."""
    images, labels = torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets, dtype=torch.int64)
    images_NCHW = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return images_NCHW.contiguous(), labels


def fetch(name: str, path: str) -> None:
    """Downloads a torchvision set into ``path`` and checks it."""
    for is_train in (True, False):
        _open(name, path, is_train)
