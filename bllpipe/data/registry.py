"""Data sets by name: handwritten digits, CIFAR and (Fashion-)MNIST from their original files, NumPy archives, image
folders and synthetic images. The first block gets images; the feedback rank loads labels alone.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bllpipe.config.schema import Config, DataConfig
from bllpipe.data.base import Arrays, ImageSet, LabelSet, MemoryImages
from bllpipe.data.catalog import (
    DEFAULT_PATH,
    DOWNLOADS,
    PUBLISHED,
    SERVER_TIMEOUT_SECONDS,
    DataSpec,
    check_user_data,
    missing,
    spec_without_files,
)
from bllpipe.data.npz import open_archive
from bllpipe.data.originals import Splits, read_original
from bllpipe.errors import DataError
from bllpipe.utils.tensors import stream

DIGITS = Path(__file__).with_name("digits.npz")


def digits() -> Arrays:
    """1,797 handwritten digits of 8x8 pixels; a fifth of every class is the test set, the same for every seed.

    They come with the package: the test set of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak,
    UCI Machine Learning Repository, CC BY 4.0, pixels from 0 to 16. scikit-learn has them too, but takes longer to
    import than a small run to train.
    """
    with np.load(DIGITS, allow_pickle=False) as raw:
        images_NCHW = torch.from_numpy(np.rint(raw["images_NHW"] * (255 / 16)).astype(np.uint8)).unsqueeze(1)
        labels_N = torch.from_numpy(raw["labels_N"].astype(np.int64))
    shuffled = torch.randperm(len(labels_N), generator=stream(0, "digits"))
    is_test = torch.zeros(len(labels_N), dtype=torch.bool)
    for label in range(10):
        of_class = shuffled[labels_N[shuffled] == label]
        is_test[of_class[: len(of_class) // 5]] = True
    return Arrays(images_NCHW[~is_test], labels_N[~is_test], images_NCHW[is_test], labels_N[is_test], num_classes=10)


def original_set(name: str, path: str) -> Arrays:
    """A published set from its files under ``path``, which are downloaded if there are none."""
    splits = read_original(name, path)
    if splits is None:
        fetch(name, path)
        splits = read_original(name, path)
        assert splits is not None, "they have just been downloaded"
    return _arrays(name, splits)


def stored(name: str, path: str) -> DataSpec:
    """The sizes of a published set under ``path``, without a download; DataError if it is missing or damaged."""
    splits = read_original(name, path)
    if splits is None:
        raise DataError(
            f"{name} is missing: its original files are not in {path}; use bllpipe data fetch {name} --path {path}"
        )
    train_NCHW, test_NCHW = splits["train"][0], splits["test"][0]
    return DataSpec(len(train_NCHW), len(test_NCHW), train_NCHW.shape[1:], PUBLISHED[name].num_classes)


def data_spec(config: Config) -> DataSpec:
    """The sizes of ``config``'s data; published ones are not downloaded for it, synthetic ones are not drawn."""
    return spec_without_files(config.data) or load_images(config.data, config.seed).spec


def fetch(name: str, path: str) -> None:
    """Downloads the original files into ``path``, where torchvision finds them too, and verifies their MD5."""
    default_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SERVER_TIMEOUT_SECONDS)  # torchvision sets none
    try:
        _download(name, path)
    except (OSError, RuntimeError) as error:
        raise missing(name, path, error) from error
    finally:
        socket.setdefaulttimeout(default_timeout)


def _download(name: str, path: str) -> None:
    """torchvision's own addresses, names and digests; its classes would also unpickle what they have downloaded."""
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive

    kind = getattr(datasets, DOWNLOADS[name].kind)
    if hasattr(kind, "tgz_md5"):
        download_and_extract_archive(kind.url, path, filename=kind.filename, md5=kind.tgz_md5)
        return
    for file, md5 in kind.resources:
        for mirror in kind.mirrors:
            try:
                download_and_extract_archive(f"{mirror}{file}", f"{path}/{kind.__name__}/raw", filename=file, md5=md5)
                break
            except (OSError, RuntimeError):
                if mirror == kind.mirrors[-1]:
                    raise


def _arrays(name: str, splits: Splits) -> Arrays:
    (train_NCHW, train_N), (test_NCHW, test_N) = (
        tuple(torch.from_numpy(np.array(each)) for each in splits[split]) for split in ("train", "test")
    )
    return Arrays(train_NCHW, train_N, test_NCHW, test_N, PUBLISHED[name].num_classes)


def _channels_first(images: Tensor) -> Tensor:
    """[N, H, W] or [N, H, W, C] as [N, C, H, W]."""
    return (images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)).contiguous()


def synthetic(data: DataConfig, seed: int) -> Arrays:
    """``synthetic_images`` RGB images and a quarter as many for the test, a pure function of ``seed``."""
    coarse = torch.rand(data.synthetic_classes, 3, 4, 4, generator=stream(seed, "templates"))
    templates_KCHW = interpolate(coarse, size=(data.image_size, data.image_size), mode="nearest")
    train = _split(templates_KCHW, data.synthetic_images, stream(seed, "synthetic", "train"))
    test = _split(templates_KCHW, max(data.synthetic_images // 4, 1), stream(seed, "synthetic", "test"))
    return Arrays(*train, *test, num_classes=data.synthetic_classes)


def _split(templates_KCHW: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    label_N = torch.randint(0, len(templates_KCHW), (count,), generator=generator)
    noise = torch.randn(count, *templates_KCHW.shape[1:], generator=generator)
    pixels = (templates_KCHW[label_N] + 0.3 * noise).clamp_(0, 1).mul_(255).round_()
    return pixels.to(torch.uint8), label_N


def read_arrays(path: str) -> Arrays:
    """Images and labels of both splits of a NumPy archive."""
    archive = open_archive(path)
    train_NCHW, test_NCHW = (
        _channels_first(torch.from_numpy(np.ascontiguousarray(archive.images(name)))) for name in ("train_x", "test_x")
    )
    train_N, test_N = torch.from_numpy(archive.train_N), torch.from_numpy(archive.test_N)
    return Arrays(train_NCHW, train_N, test_NCHW, test_N, archive.spec.num_classes)


def read_labels(path: str) -> LabelSet:
    """The labels alone; the images stay on disk."""
    archive = open_archive(path)
    return LabelSet(torch.from_numpy(archive.train_N), torch.from_numpy(archive.test_N), archive.spec.num_classes)


# The data sets that fit into memory.
LOADERS: dict[str, Callable[[DataConfig, int], Arrays]] = {
    "digits": lambda data, seed: digits(),
    "synthetic": synthetic,
    "npz": lambda data, seed: read_arrays(str(data.path)),
    **dict.fromkeys(DOWNLOADS, lambda data, seed: original_set(data.name, data.path or DEFAULT_PATH)),
}


def load_images(data: DataConfig, seed: int) -> ImageSet:
    """The images of ``data.name``; DataError if they are missing or invalid."""
    if data.user_data is not None:
        images: ImageSet = data.user_data.images(data, seed)
        return images
    if data.name == "imagefolder":
        from bllpipe.data.image_folder import FolderImages

        return FolderImages(data, seed)
    return array_images(load_arrays(data, seed), data, seed)


def array_images(arrays: Arrays, data: DataConfig, seed: int) -> ImageSet:
    """Images in memory, or those of a recipe."""
    if data.augment.recipe == "none":
        return MemoryImages(arrays, data)
    from bllpipe.data.decoded_images import ArrayImages

    return ArrayImages(arrays, data, seed)


def load_labels(data: DataConfig, seed: int) -> LabelSet:
    """The labels of ``data.name``, without keeping any image."""
    if data.user_data is not None:
        labels: LabelSet = data.user_data.labels()
        return labels
    if data.name == "imagefolder":
        from bllpipe.data.image_folder import folder_labels

        return folder_labels(data)
    if data.name == "npz":
        return read_labels(str(data.path))
    arrays = load_arrays(data, seed)
    return LabelSet(arrays.train_N, arrays.test_N, arrays.num_classes)


def load_arrays(data: DataConfig, seed: int) -> Arrays:
    """A set that fits into memory."""
    check_user_data(data)
    return LOADERS[data.name](data, seed)
