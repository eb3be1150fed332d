"""Image folders: PATH/train/CLASS/* and PATH/test/CLASS/* (or PATH/val), decoded as they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bllpipe.config.schema import DataConfig
from bllpipe.errors import DataError
from bllpipe.run.data.sets import LabelSet, Split, check_labels, mean_and_std
from bllpipe.run.data.spec import DataSpec

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".gif", ".tif", ".tiff")
MAX_PIXELS = 64_000_000

Sample = tuple[str, Path]


class FolderImages:
    """An ImageSet that decodes in a DataLoader: short side to ``image_size``, centre crop, RGB."""

    def __init__(self, data: DataConfig) -> None:
        self._listing, labels = _listing(data), folder_labels(data)
        self._size, self._workers = data.image_size, data.workers
        sizes = (len(self._listing["train"]), len(self._listing["test"]))
        self.spec = DataSpec(*sizes, (3, data.image_size, data.image_size), labels.num_classes)
        self.mean, self.std = mean_and_std(data, 3, None)

    def batches(self, wanted: Iterable[tuple[Split, Tensor]]) -> Iterator[Tensor]:
        paths = ([str(self._listing[split][i][1]) for i in index_B.tolist()] for split, index_B in wanted)
        decoder = _Decoder(self._size)
        loader = DataLoader(decoder, batch_sampler=_Listed(paths), num_workers=self._workers, collate_fn=torch.stack)
        return iter(loader)


class _Listed:
    """A batch sampler over paths instead of numbers."""

    def __init__(self, batches: Iterator[list[str]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[str]]:
        return self._batches


class _Decoder(Dataset[Tensor]):
    """From a path to uint8 [3, size, size]."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __getitem__(self, path: str) -> Tensor:
        try:
            with Image.open(path) as image:
                return self._decode(image, path)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
            raise DataError(f"{path} cannot be read as an image: {error}; remove or replace it") from error

    def _decode(self, image: Image.Image, path: str) -> Tensor:
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"{path} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are decoded")
        scale = self._size / min(image.size)
        width, height = (max(self._size, round(side * scale)) for side in image.size)
        rgb = image.convert("RGB")
        if rgb.size != (width, height):
            rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self._size) // 2, (height - self._size) // 2
        cropped = rgb.crop((left, top, left + self._size, top + self._size))
        return torch.from_numpy(np.array(cropped)).permute(2, 0, 1).contiguous()


def folder_labels(data: DataConfig) -> LabelSet:
    """The labels of both splits from the names of the folders alone."""
    listing = _listing(data)
    classes = sorted({name for name, _ in listing["train"]})
    unknown = sorted({name for name, _ in listing["test"]} - set(classes))
    if unknown:
        raise DataError(f"{data.path}: the test folder has classes that the train folder lacks: {', '.join(unknown)}")
    train_N, test_N = (
        torch.tensor([classes.index(name) for name, _ in listing[split]], dtype=torch.int64)
        for split in ("train", "test")
    )
    return LabelSet(train_N, test_N, check_labels(train_N, test_N, str(data.path)))


def _listing(data: DataConfig) -> dict[str, list[Sample]]:
    """(class, file) of every image of both splits, sorted by class and name."""
    root = Path(str(data.path))
    test = root / "test" if (root / "test").is_dir() else root / "val"
    for folder in (root / "train", test):
        if not folder.is_dir():
            raise DataError(f"{folder} does not exist; needed are {root}/train/CLASS/*.png and {root}/test/CLASS/*.png")
    return {"train": _samples(root / "train", root), "test": _samples(test, root)}


def _samples(folder: Path, root: Path) -> list[Sample]:
    samples = []
    for group in sorted(path for path in folder.iterdir() if path.is_dir()):
        for file in sorted(path for path in group.iterdir() if path.suffix.lower() in SUFFIXES):
            if file.is_symlink() and root.resolve() not in file.resolve().parents:
                raise DataError(f"{file} is a link to {file.resolve()}, outside of {root}; copy the image instead")
            samples.append((group.name, file))
    return samples
