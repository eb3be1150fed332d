"""Folders of images: PATH/train/CLASS/* and PATH/test/CLASS/*."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bllpipe.config.schema import DataConfig
from bllpipe.data.base import LabelSet, Split, labels_sha256
from bllpipe.data.catalog import check_labels, listing
from bllpipe.data.decoded_images import DecodedImages
from bllpipe.data.decoding import Decoder
from bllpipe.data.metadata import Sample
from bllpipe.errors import DataError
from bllpipe.utils.console import warn


class FolderFiles:
    """The files of a listing."""

    def __init__(self, samples: Mapping[str, Sequence[Sample]]) -> None:
        self._paths = {split: [str(file) for _, file in pairs] for split, pairs in samples.items()}

    def file(self, split: Split, number: int) -> tuple[str, bytes | None]:
        return self._paths[split][number], None

    def __len__(self) -> int:
        return len(self._paths["train"])


class FolderImages:
    """An ImageSet over a folder."""

    def __init__(self, data: DataConfig, seed: int = 0) -> None:
        samples = listing(str(data.path), warn)
        labels = _labels(samples, str(data.path))
        names = (f"{name}/{file.name}" for split in ("train", "test") for name, file in samples[split])
        digest = labels_sha256(labels.train_N, labels.test_N, names)
        self._decoded = DecodedImages(FolderFiles(samples), labels, digest, data, seed)
        self.spec = self._decoded.spec

    @property
    def mean(self) -> list[float]:
        return self._decoded.mean

    @property
    def std(self) -> list[float]:
        return self._decoded.std

    def batches(self, wanted: Iterable[tuple[Split, Tensor]]) -> Iterator[Tensor]:
        return self._decoded.batches(wanted)


def image(path: str, size: int) -> Tensor:
    """uint8 [3, size, size] of one file; DataError names it when it cannot be read."""
    return Decoder(FolderFiles({"train": [("", Path(path))]}), DataConfig(image_size=size))[("train", 0, None)]


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
