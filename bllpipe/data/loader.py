"""Batches in the order of the run schedule: shuffled by seed and epoch, augmented, prefetched, and on their device.

Images are bytes in the memory of the GPU, or of the CPU, from where a thread prefetches batches into pinned memory.
Augmentation is batched tensor code without state, and all of its draws come from one CPU generator, so every device
makes the same choices.

Shapes: B images, C channels, H x W.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from math import pi
from threading import Thread
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from bllpipe.config.running import GpuConfig
from bllpipe.config.schema import AugmentConfig
from bllpipe.data.base import ImageSet, LabelSet, MemoryImages, Split, to_device
from bllpipe.data.catalog import DataSpec
from bllpipe.distributed.local_links import Channel
from bllpipe.errors import ConfigError
from bllpipe.messages import ONE_PASS, Alpha, Passes, Round, Target, messages
from bllpipe.utils.tensors import stream

CPU = torch.device("cpu")
LARGEST_SHARE = 4  # with gpu.images=auto images take at most 1 / LARGEST_SHARE of the memory of a GPU
ALL = slice(None)
DEPTH = 2  # batches that are drawn ahead
Item = TypeVar("Item")


class ImageSource:
    """A receiver of image batches, or of the images in them that are in the own ``passes``, augmented in training. They
    are copied to ``device`` as bytes and augmented there; float32 images of a script are not changed."""

    def __init__(
        self,
        images: ImageSet,
        rounds: Iterator[Round],
        seed: int,
        config: AugmentConfig,
        device: torch.device = CPU,
        passes: Passes = ONE_PASS,
    ) -> None:
        self._images, self._seed, self._config, self._device = images, seed, config, device
        self._passes = passes
        self._entries: list[Round] = []
        self._batches = images.batches(self._wanted(messages(rounds)))

    def recv(self) -> Alpha:
        images_BCHW = to_device(next(self._batches), self._device)
        entry = self._entries.pop(0)
        if images_BCHW.dtype != torch.uint8:
            return Alpha(entry, images_BCHW)
        if entry.phase == "train" and self._config.recipe == "none":
            draws = stream(self._seed, "augment", entry.epoch, entry.batch)
            place = Place(entry.size, self._passes.own_images(entry))
            images_BCHW = augment(images_BCHW, self._config, draws, place)
        return Alpha(entry, normalise(images_BCHW, self._images.mean, self._images.std))

    def _wanted(self, rounds: Iterator[Round]) -> Iterator[tuple[Split, Tensor]]:
        """The images of each round; a loader may draw several rounds ahead."""
        for entry, split, index_B in _indices(rounds, self._images.spec.num_train, self._seed):
            index_B = index_B[self._passes.own_images(entry)]
            if not len(index_B):  # a small test batch may have none for a replica
                continue
            self._entries.append(entry)
            if entry.phase == "train" and self._config.recipe != "none":
                index_B = index_B + entry.epoch * self._images.spec.num_train  # whose draws differ by epoch
            yield split, index_B


class LabelSource:
    """A receiver of targets without beta, for a network that learns end to end."""

    def __init__(self, labels: LabelSet, rounds: Iterator[Round], seed: int, device: torch.device) -> None:
        self._batches = label_batches(labels, rounds, seed, device)
        self._num_classes, self._device = labels.num_classes, device

    def recv(self) -> Target:
        entry, label_B = next(self._batches)
        beta_BK = torch.zeros(len(label_B), self._num_classes, device=self._device)
        known_B = torch.zeros(len(label_B), device=self._device)
        return Target(entry, beta_BK, known_B, label_B)


def label_batches(
    labels: LabelSet, rounds: Iterator[Round], seed: int, device: torch.device = CPU
) -> Iterator[tuple[Round, Tensor]]:
    """The labels of the images of ``ImageSource``, int64 [B] for each round, on ``device``."""
    splits = {"train": labels.train_N, "test": labels.test_N}
    for entry, split, index_B in _indices(messages(rounds), len(labels.train_N), seed):
        yield entry, to_device(splits[split][index_B], device)


def _indices(rounds: Iterator[Round], num_train: int, seed: int) -> Iterator[tuple[Round, Split, Tensor]]:
    order = lru_cache(maxsize=1)(lambda epoch: epoch_order(seed, epoch, num_train))
    first = 0  # of the next test batch
    for entry in rounds:
        if entry.phase == "train":
            yield entry, "train", batch_index(order(entry.epoch), entry.batch, entry.size)
        else:
            first = 0 if entry.batch == 0 else first
            yield entry, "test", torch.arange(first, first + entry.size)
            first += entry.size


def placed(images: ImageSet, config: GpuConfig, device: torch.device) -> ImageSet:
    """The images in the memory that ``gpu.images`` names, for a block on ``device``."""
    if device.type == "cpu":
        return images
    if stays_on_device(images, config, torch.cuda.mem_get_info(device)[1]):
        assert isinstance(images, MemoryImages), "checked just now"
        return images.on(device)
    return PrefetchedImages(images, Tensor.pin_memory)


def stays_on_device(images: ImageSet, config: GpuConfig, memory_bytes: int) -> bool:
    """Whether all images go to a GPU with ``memory_bytes``. ConfigError if gpu.images is device, but the images are
    decoded one by one."""
    if not isinstance(images, MemoryImages):
        if config.images == "device":
            raise ConfigError(
                "gpu.images is device, but the images of a folder are decoded as they are needed, and recipes run in "
                "processes; use --set gpu.images=host"
            )
        return False
    fits = images.num_bytes * LARGEST_SHARE <= memory_bytes
    return config.images == "device" or (config.images == "auto" and fits)


class PrefetchedImages:
    """An ImageSet whose batches a thread draws, or decodes, while the device works on those before them; ``pin`` copies
    them into memory from which a GPU reads by itself."""

    def __init__(self, images: ImageSet, pin: Callable[[Tensor], Tensor]) -> None:
        self._images, self._pin = images, pin
        self.spec: DataSpec = images.spec
        self.mean, self.std = images.mean, images.std

    def batches(self, wanted: Iterable[tuple[Split, Tensor]]) -> Iterator[Tensor]:
        yield from Prefetcher(map(self._pin, self._images.batches(wanted)).__next__)  # starts with the first batch


class Prefetcher(Generic[Item]):
    """What ``draw`` returns until it raises StopIteration, drawn by a thread ahead of its use: an iterator, and the
    receiver of a block's images. At most ``depth`` items wait.

    The thread ends with the last item, with an error, which is raised where the item is asked for, or when the
    prefetcher is closed or no longer referred to.
    """

    def __init__(self, draw: Callable[[], Item], num_threads: int | None = None, depth: int = DEPTH) -> None:
        self._ready = Channel[Item](depth)
        # The thread knows the channel alone: with a reference to the prefetcher it would keep itself alive.
        self.thread = Thread(target=_draw_ahead, args=(draw, self._ready, num_threads), name="images", daemon=True)
        self.close = weakref.finalize(self, self._ready.close, StopIteration())
        self.thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        return self._ready.get()

    recv = __next__


def _draw_ahead(draw: Callable[[], Item], ready: Channel[Item], num_threads: int | None) -> None:
    if num_threads is not None:
        torch.set_num_threads(num_threads)  # OpenMP counts threads per thread
    try:
        while True:
            ready.put(draw())
    except BaseException as error:  # StopIteration too: the last item has been drawn, or the channel is closed
        ready.close(error)


def epoch_order(seed: int, epoch: int, num_train: int) -> Tensor:
    """A permutation of the training images, int64 [num_train]."""
    return torch.randperm(num_train, generator=stream(seed, "order", epoch))


def batch_index(order: Tensor, batch: int, batch_size: int) -> Tensor:
    """The images of mini-batch ``batch``, int64 [batch_size]. An incomplete last batch is never used."""
    return order[batch * batch_size : (batch + 1) * batch_size]


class Place(NamedTuple):
    """The places of some images in a batch of ``batch_size``: they get the draws of these places."""

    batch_size: int
    own: slice


def augment(
    images_BCHW: Tensor, config: AugmentConfig, generator: torch.Generator, place: Place | None = None
) -> Tensor:
    """uint8 images of the same shape, randomly cropped, flipped and rotated as ``config`` says; a whole batch, or those
    at a ``place`` in one."""
    if config.crop_padding:
        images_BCHW = _crop(images_BCHW, config.crop_padding, generator, place)
    if config.flip:
        images_BCHW = _flip(images_BCHW, generator, place)
    if config.rotation:
        images_BCHW = _rotate(images_BCHW, config.rotation, generator, place)
    return images_BCHW


def normalise(images_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """float32 images: pixels in 0..1 minus ``mean``, divided by ``std``, both by channel."""
    mean_C, std_C = torch.tensor(mean), torch.tensor(std)
    scale_C, shift_C = 1 / (255 * std_C), -mean_C / std_C
    scaled = images_BCHW.to(torch.float32).mul_(to_device(scale_C, images_BCHW.device).view(-1, 1, 1))
    return scaled.add_(to_device(shift_C, images_BCHW.device).view(-1, 1, 1)).contiguous()


def _crop(images_BCHW: Tensor, padding: int, generator: torch.Generator, place: Place | None = None) -> Tensor:
    """A window of the original size at a random place of the zero-padded image: one gather for the whole batch."""
    batch, _, height, width = images_BCHW.shape
    size, own = place or Place(batch, ALL)
    corners = torch.randint(0, 2 * padding + 1, (2, size), generator=generator)[:, own]
    number_B, top_B, left_B = to_device(torch.cat([torch.arange(batch)[None], corners]), images_BCHW.device)
    windows = pad(images_BCHW, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # [B, C, top, left, H, W]
    return windows[number_B, :, top_B, left_B]


def _flip(images_BCHW: Tensor, generator: torch.Generator, place: Place | None = None) -> Tensor:
    """Images flipped left to right with probability 0.5."""
    mirrored_B = _uniform(images_BCHW, generator, place) < 0.5
    return torch.where(to_device(mirrored_B, images_BCHW.device).view(-1, 1, 1, 1), images_BCHW.flip(3), images_BCHW)


def _uniform(images_BCHW: Tensor, generator: torch.Generator, place: Place | None) -> Tensor:
    """A number from 0 to 1 for every image."""
    size, own = place or Place(len(images_BCHW), ALL)
    return torch.rand(size, generator=generator)[own]


def _rotate(images_BCHW: Tensor, degrees: float, generator: torch.Generator, place: Place | None = None) -> Tensor:
    """Each image rotated by its own angle, bilinear, padded with zeros.

    The grid's coordinates go from -1 to 1 along both sides, so the sines carry the ratio of the sides.
    """
    height, width = images_BCHW.shape[2:]
    angle_B = (2 * _uniform(images_BCHW, generator, place) - 1) * degrees * pi / 180
    cos_B, sin_B, zero_B = angle_B.cos(), angle_B.sin(), torch.zeros_like(angle_B)
    rows = [
        torch.stack([cos_B, -sin_B * height / width, zero_B], 1),
        torch.stack([sin_B * width / height, cos_B, zero_B], 1),
    ]
    turns = to_device(torch.stack(rows, 1), images_BCHW.device)
    grid = affine_grid(turns, list(images_BCHW.shape), align_corners=False)
    turned = grid_sample(images_BCHW.to(torch.float32), grid, align_corners=False)
    return turned.round_().clamp_(0, 255).to(torch.uint8)
