"""The itinerary's images and labels: what the first block receives, and what the lanes are told."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from bllpipe.config.schema import AugmentConfig
from bllpipe.ports import Alpha, Round, Target
from bllpipe.randomness import stream
from bllpipe.run.data.augment import augment, normalise
from bllpipe.run.data.order import batch_index, epoch_order
from bllpipe.run.data.sending import sent
from bllpipe.run.data.sets import ImageSet, LabelSet, Split
from bllpipe.run.itinerary import messages

CPU = torch.device("cpu")


class ImageSource:
    """A receiver whose messages are the batches of images: augmented in training, as they are in the test. They go to
    ``device`` as bytes, and are augmented there; what a script gives as float32 stays as it is."""

    def __init__(
        self,
        images: ImageSet,
        rounds: Iterator[Round],
        seed: int,
        config: AugmentConfig,
        device: torch.device = CPU,
    ) -> None:
        self._images, self._seed, self._config, self._device = images, seed, config, device
        self._entries: list[Round] = []
        self._batches = images.batches(self._wanted(messages(rounds)))

    def recv(self) -> Alpha:
        images_BCHW = sent(next(self._batches), self._device)
        entry = self._entries.pop(0)
        if images_BCHW.dtype != torch.uint8:
            return Alpha(entry, images_BCHW)
        if entry.phase == "train":
            draws = stream(self._seed, "augment", entry.epoch, entry.batch)
            images_BCHW = augment(images_BCHW, self._config, draws)
        return Alpha(entry, normalise(images_BCHW, self._images.mean, self._images.std))

    def _wanted(self, rounds: Iterator[Round]) -> Iterator[tuple[Split, Tensor]]:
        """Which images each round needs; a loader may ask for several rounds ahead."""
        for entry, split, index_B in _indices(rounds, self._images.spec.num_train, self._seed):
            self._entries.append(entry)
            yield split, index_B


class LabelSource:
    """A receiver whose messages are targets of labels alone: for a network that learns end to end there is no beta."""

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
    """The labels of exactly the images that ``ImageSource`` gives, int64 [B] a round, on ``device``."""
    splits = {"train": labels.train_N, "test": labels.test_N}
    for entry, split, index_B in _indices(messages(rounds), len(labels.train_N), seed):
        yield entry, sent(splits[split][index_B], device)


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
