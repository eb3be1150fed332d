"""Where images wait, on machines without a GPU: the choice, the thread that draws ahead, and the same bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor

from bllpipe.config.running import GpuConfig
from bllpipe.config.schema import AugmentConfig, DataConfig
from bllpipe.data.base import ImageSet, MemoryImages, Split, to_device
from bllpipe.data.catalog import DataSpec
from bllpipe.data.loader import ImageSource, PrefetchedImages, placed, stays_on_device
from bllpipe.errors import ConfigError, DataError
from bllpipe.messages import Round
from tests.unit.data.test_loader import FULL, PIXELS, PLAN, arrays

CPU = torch.device("cpu")


class Folder:
    """Images that are not in memory."""

    spec = DataSpec(4, 2, (1, 5, 5), 2)
    mean, std = [0.0], [1.0]

    def batches(self, wanted: Iterable[tuple[Split, Tensor]]) -> Iterator[Tensor]:
        for _, index_B in wanted:
            if len(index_B) == 3:
                raise DataError("train/cat/3.png is no image")
            yield torch.full((len(index_B), 1, 5, 5), int(index_B[0]), dtype=torch.uint8)


def memory() -> MemoryImages:
    return MemoryImages(arrays(), PIXELS)


@pytest.mark.parametrize(
    ("choice", "images", "memory_bytes", "stays"),
    [
        ("auto", memory(), 4 * memory().num_bytes, True),
        ("auto", memory(), 4 * memory().num_bytes - 1, False),
        ("device", memory(), 1, True),
        ("host", memory(), 2**40, False),
        ("auto", Folder(), 2**40, False),
        ("host", Folder(), 2**40, False),
    ],
)
def test_who_stays_on_a_gpu(choice: str, images: ImageSet, memory_bytes: int, stays: bool) -> None:
    assert stays_on_device(images, GpuConfig(images=choice), memory_bytes) is stays  # type: ignore[arg-type]  # one of them


def test_a_folder_cannot_stay_there() -> None:
    with pytest.raises(ConfigError, match="gpu.images is device, but the images of a folder are decoded as they are"):
        stays_on_device(Folder(), GpuConfig(images="device"), 2**40)


def test_images_of_a_cpu_stay_where_they_are() -> None:
    images = memory()
    assert placed(images, GpuConfig(images="device"), CPU) is images


def test_moved_images_are_the_same_ones() -> None:
    images, index_B = memory(), torch.tensor([3, 0, 7])
    moved = images.on(CPU)
    assert moved is not images and moved.spec == images.spec and moved.mean == images.mean
    (one,), (other,) = (list(each.batches([("train", index_B)])) for each in (images, moved))
    assert torch.equal(one, other)


@pytest.mark.parametrize("config", [FULL, AugmentConfig(crop_padding=0, flip=False, rotation=0.0)])
def test_batches_drawn_ahead_are_the_same(config: AugmentConfig) -> None:
    pinned: list[int] = []

    def pin(images_BCHW: Tensor) -> Tensor:
        pinned.append(len(images_BCHW))
        return images_BCHW.clone()

    kept, ahead = (ImageSource(each, PLAN.rounds(), 0, config) for each in (memory(), PrefetchedImages(memory(), pin)))
    rounds: list[Round] = []
    for _ in range(12):
        expected, found = kept.recv(), ahead.recv()
        rounds.append(found.round)
        assert expected.round == found.round
        assert torch.equal(expected.alpha_BCHW, found.alpha_BCHW)
    assert pinned[:12] == [entry.size for entry in rounds]


def test_drawing_ahead_ends_with_the_last_batch() -> None:
    found = list(
        PrefetchedImages(Folder(), Tensor.clone).batches([("train", torch.tensor([number])) for number in range(5)])
    )
    assert [int(batch[0, 0, 0, 0]) for batch in found] == [0, 1, 2, 3, 4]


def test_what_cannot_be_decoded_is_an_error_where_it_is_asked_for() -> None:
    batches = PrefetchedImages(Folder(), Tensor.clone).batches([("train", torch.arange(2)), ("train", torch.arange(3))])
    assert len(next(batches)) == 2
    with pytest.raises(DataError, match=r"train/cat/3\.png is no image"):
        next(batches)


def test_what_is_there_already_is_not_sent() -> None:
    tensor = torch.arange(3)
    assert to_device(tensor, CPU) is tensor


def test_the_data_say_how_large_they_are() -> None:
    assert memory().num_bytes == (23 + 10) * 25
    assert MemoryImages(arrays(), DataConfig(name="npz")).num_bytes == (23 + 10) * 25
