"""Image folders, decoded batch by batch; an error names a damaged or oversized image."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bllpipe.config.schema import DataConfig
from bllpipe.data.base import LabelSet, Split, labels_sha256, mean_and_std
from bllpipe.data.catalog import DataSpec, Sample, check_labels, listing
from bllpipe.errors import DataError
from bllpipe.utils.console import warn
from bllpipe.utils.process import end_with_parent

MAX_PIXELS = 64_000_000  # as stored and as resized
MAX_BYTES = 256_000_000  # so many pixels without any compression
# The formats of catalog.SUFFIXES. Pillow goes by the content, and for some formats it starts a program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")


class FolderImages:
    """An ImageSet that decodes in a DataLoader: short side to ``image_size``, centre crop, RGB."""

    def __init__(self, data: DataConfig) -> None:
        self._listing = listing(str(data.path), warn)
        labels = _labels(self._listing, str(data.path))
        self._size, self._workers = data.image_size, data.workers
        sizes = (len(self._listing["train"]), len(self._listing["test"]))
        names = (f"{name}/{file.name}" for split in ("train", "test") for name, file in self._listing[split])
        digest = labels_sha256(labels.train_N, labels.test_N, names)
        self.spec = DataSpec(*sizes, (3, data.image_size, data.image_size), labels.num_classes, digest)
        self.mean, self.std = mean_and_std(data, 3, None)

    def batches(self, wanted: Iterable[tuple[Split, Tensor]]) -> Iterator[Tensor]:
        paths = ([str(self._listing[split][i][1]) for i in index_B.tolist()] for split, index_B in wanted)
        loader = DataLoader(
            _Decoder(self._size),
            batch_sampler=paths,
            num_workers=self._workers,
            collate_fn=torch.stack,
            worker_init_fn=_end_with_rank,
        )
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # also in the processes that start here
        try:
            return iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_rank(number: int) -> None:
    """In a decoding process: it ends with its rank, even if the rank is killed, and not before. torchrun signals the
    process group, which this process leaves: the rank still needs images until it stops."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # discards one that the group got before
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    end_with_parent()


class _Decoder(Dataset[Tensor]):
    """From a path to uint8 [3, size, size]."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __getitem__(self, path: str) -> Tensor:
        try:
            file = Path(path)
            if file.exists() and not file.is_file():  # a read of a pipe would wait
                raise DataError(
                    f"{path} cannot be read as an image: it is a folder, a pipe or a device; remove or replace it"
                )
            if (size := file.stat().st_size) > MAX_BYTES:
                raise DataError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read; make it smaller")
            with Image.open(path, formats=FORMATS) as image:
                return self._decode(image, path)
        except DataError:
            raise
        except Exception as error:  # a malicious file can raise nearly any of them
            raise DataError(f"{path} cannot be read as an image: {error!s:.200}; remove or replace it") from error

    def _decode(self, image: Image.Image, path: str) -> Tensor:
        scale = self._size / min(image.size)
        width, height = (max(self._size, round(side * scale)) for side in image.size)
        if max(image.width * image.height, width * height) > MAX_PIXELS:
            raise DataError(f"{path} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are decoded")
        if image.mode.startswith(("I", "F")):
            raise DataError(f"{path} has pixels of mode {image.mode}; save it with 8 bits a channel")
        rgb = image.convert("RGB")
        if rgb.size != (width, height):
            rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self._size) // 2, (height - self._size) // 2
        cropped = rgb.crop((left, top, left + self._size, top + self._size))
        return torch.from_numpy(np.array(cropped)).permute(2, 0, 1).contiguous()


def image(path: str, size: int) -> Tensor:
    """uint8 [3, size, size] of one file; DataError names it when it cannot be read."""
    return _Decoder(size)[path]


def folder_labels(data: DataConfig) -> LabelSet:
    """The labels of both splits from the names of the folders alone."""
    return _labels(listing(str(data.path)), str(data.path))


def _labels(samples: dict[str, list[Sample]], path: str) -> LabelSet:
    classes = sorted({name for name, _ in samples["train"]})
    unknown = sorted({name for name, _ in samples["test"]} - set(classes))
    if unknown:
        raise DataError(f"{path}: the test folder has classes that the train folder lacks: {', '.join(unknown[:9])}")
    number = {name: label for label, name in enumerate(classes)}
    train_N, test_N = (
        torch.tensor([number[name] for name, _ in samples[split]], dtype=torch.int64) for split in ("train", "test")
    )
    return LabelSet(train_N, test_N, check_labels(train_N, test_N, path))
