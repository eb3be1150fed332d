"""Images that are decoded batch by batch, in processes; an error names a damaged or oversized image. Each is resized so
that its aspect stays, and cropped.
"""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from io import BytesIO
from typing import Protocol

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from bllpipe.config.schema import DataConfig
from bllpipe.data.base import Split
from bllpipe.errors import DataError
from bllpipe.utils.process import end_with_parent

MAX_PIXELS = 64_000_000  # as stored and as resized
MAX_BYTES = 256_000_000  # so many pixels without any compression
# The formats of catalog.SUFFIXES. Pillow goes by the content, and for some formats it starts a program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
TEST_RESIZE = 256 / 224  # with a random resized crop in training, the short side of a test image before its centre crop
Key = tuple[Split, int, int | None]  # split, image, and the seed of a training image of a recipe
Box = tuple[int, int, int, int]  # left, top, right, bottom


class Files(Protocol):
    """The encoded images of a data set."""

    def file(self, split: Split, number: int) -> tuple[str, bytes | None]:
        """The path of an image; or what it is called in messages, and its bytes."""

    def __len__(self) -> int:
        """The number of training images."""


class Augmentation(Protocol):
    """A recipe: uint8 [C, H, W] of an image and a seed. ``crops`` says whether it takes a part of the whole image; the
    others get the centre crop."""

    @property
    def crops(self) -> bool: ...

    def __call__(self, image: Image.Image, seed: int) -> Tensor: ...


def decoded(
    items: Dataset[Tensor], batches: Iterable[list[Key]], workers: int, generator: torch.Generator | None = None
) -> Iterator[Tensor]:
    """Batches of items, in ``workers`` processes, or in this one for 0. Without a ``generator`` the loader draws a
    number that it does not need from torch's global one."""
    loader = DataLoader(
        items,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=default_collate,
        worker_init_fn=_end_with_rank,
        generator=generator,
    )  # default_collate writes into the memory that the processes share
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


class Decoder(Dataset[Tensor]):
    """From a key to uint8 [3, size, size]: the centre of the image, or what a recipe makes of it."""

    def __init__(self, files: Files, data: DataConfig, recipe: Augmentation | None = None) -> None:
        self._files, self._recipe = files, recipe
        self._size, self._resize, self._is_reduced = data.image_size, data.image_size, data.augment.recipe != "none"
        if data.augment.recipe in ("imagenet", "trivial"):
            self._resize = round(data.image_size * TEST_RESIZE)

    @property
    def key(self) -> str:
        """What its centre crops depend on, in words."""
        return f"{self._resize} {self._size} {self._is_reduced} {PIL.__version__}"

    def __getitem__(self, key: Key) -> Tensor:
        split, number, seed = key
        name, content = self._files.file(split, number)
        try:
            with self._opened(name, content) as source, Image.open(source, formats=FORMATS) as image:
                _check(image, name)
                if seed is not None and self._recipe is not None and self._recipe.crops:
                    return self._recipe(image, seed)
                centre = self._centre(image, name)
                if seed is not None and self._recipe is not None:
                    return self._recipe(centre, seed)
                return torch.from_numpy(np.array(centre)).permute(2, 0, 1).contiguous()
        except DataError:
            raise
        except Exception as error:  # a malicious file can raise nearly any of them
            raise DataError(f"{name} cannot be read as an image: {error!s:.200}; remove or replace it") from error

    def _opened(self, name: str, content: bytes | None) -> AbstractContextManager[str | BytesIO]:
        if content is not None:
            size = len(content)
        else:
            found = os.stat(name)
            if not stat.S_ISREG(found.st_mode):  # a read of a pipe would wait
                raise DataError(
                    f"{name} cannot be read as an image: it is a folder, a pipe or a device; remove or replace it"
                )
            size = found.st_size
        if size > MAX_BYTES:
            raise DataError(f"{name} has {size:,} bytes; at most {MAX_BYTES:,} are read; make it smaller")
        return nullcontext(name) if content is None else BytesIO(content)

    def _centre(self, image: Image.Image, name: str) -> Image.Image:
        scale = self._resize / min(image.size)
        width, height = (max(self._resize, round(side * scale)) for side in image.size)
        if width * height > MAX_PIXELS:
            raise _too_large(image, name)
        if self._is_reduced:
            reduced(image, (0, 0, *image.size), min(image.size) // self._resize)
        rgb = image.convert("RGB")
        if rgb.size != (width, height):
            rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self._size) // 2, (height - self._size) // 2
        return rgb.crop((left, top, left + self._size, top + self._size))


def _check(image: Image.Image, name: str) -> None:
    """Raises DataError for an image with too many pixels, or with more than 8 bits a channel."""
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(image, name)
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{name} has pixels of mode {image.mode}; save it with 8 bits a channel")


def _too_large(image: Image.Image, name: str) -> DataError:
    return DataError(f"{name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are decoded")


def reduced(image: Image.Image, box: Box, factor: int) -> Box:
    """Lets the decoder of JPEG make the image smaller, by 2, 4 or 8 and at most by ``factor``, which costs less than
    decoding all of it; returns the box in the smaller image."""
    before = image.size
    if factor > 1 and image.format == "JPEG":
        image.draft(image.mode, (-(-image.width // factor), -(-image.height // factor)))
    if image.size == before:
        return box
    scale_x, scale_y = image.width / before[0], image.height / before[1]
    left, top = min(int(box[0] * scale_x), image.width - 1), min(int(box[1] * scale_y), image.height - 1)
    right, bottom = round(box[2] * scale_x), round(box[3] * scale_y)
    return left, top, min(max(right, left + 1), image.width), min(max(bottom, top + 1), image.height)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image, converted only if it has another mode: even to its own mode Pillow would copy it."""
    return image if image.mode == mode else image.convert(mode)
