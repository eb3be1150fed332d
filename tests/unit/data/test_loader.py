"""Images and labels of one itinerary, on a set whose pixels say which image they are.

A training image is filled with its index, which is its label too; a test image with 100 + its index.
"""

from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor

from bllpipe.config.schema import AugmentConfig, Config, DataConfig
from bllpipe.data.base import Arrays, LabelSet, MemoryImages, Split
from bllpipe.data.loader import ImageSource, augment, batch_index, epoch_order, label_batches
from bllpipe.messages import Alpha, Round, messages
from bllpipe.training.run_schedule import RunSchedule
from bllpipe.utils.tensors import stream

NUM_TRAIN, NUM_TEST, BATCH = 23, 10, 4
PIXELS = DataConfig(name="npz", batch_size=BATCH, mean=[0.0], std=[1 / 255])  # normalised images are the pixels
PLAIN = AugmentConfig(crop_padding=0, flip=False, rotation=0.0)
FULL = AugmentConfig(crop_padding=2, flip=True, rotation=30.0)
PLAN = RunSchedule.of(Config(epochs=2, data=PIXELS), NUM_TRAIN, NUM_TEST)


class EagerImages(MemoryImages):
    """Asks for every batch before it gives the first one, as a loader with many workers may."""

    def batches(self, wanted: Iterable[tuple[Split, Tensor]]) -> Iterator[Tensor]:
        return super().batches(list(wanted))


def arrays() -> Arrays:
    train_N, test_N = torch.arange(NUM_TRAIN), torch.arange(NUM_TEST)
    train_NCHW, test_NCHW = (values_N.to(torch.uint8).view(-1, 1, 1, 1) for values_N in (train_N, 100 + test_N))
    sizes = (-1, 1, 5, 5)
    return Arrays(train_NCHW.expand(sizes), train_N, test_NCHW.expand(sizes), test_N, num_classes=NUM_TRAIN)


LABELS = LabelSet(torch.arange(NUM_TRAIN), torch.arange(NUM_TEST), NUM_TRAIN)


def received(
    start: int = 0, seed: int = 0, config: AugmentConfig = PLAIN, kind: type[MemoryImages] = MemoryImages
) -> list[Alpha]:
    """Everything the first block receives after ``start`` steps."""
    source = ImageSource(kind(arrays(), PIXELS), PLAN.rounds(start), seed, config)
    return [source.recv() for _ in messages(PLAN.rounds(start))]


def told(start: int = 0, seed: int = 0) -> list[tuple[Round, Tensor]]:
    """Everything the lanes are told after ``start`` steps."""
    return list(label_batches(LABELS, PLAN.rounds(start), seed))


def numbers(alpha: Alpha) -> list[int]:
    """Which images a batch without augmentation holds."""
    return [round(value) for value in alpha.alpha_BCHW[:, 0, 0, 0].tolist()]


def test_the_plan_has_two_epochs_with_a_test_after_each() -> None:
    phases = [(entry.phase, entry.epoch, entry.size) for entry in messages(PLAN.rounds())]
    epochs = [[("train", epoch, 4)] * 5 + [("evaluate", epoch, size) for size in (4, 4, 2)] for epoch in range(2)]
    assert phases == epochs[0] + epochs[1]


@pytest.mark.parametrize("kind", [MemoryImages, EagerImages])
@pytest.mark.parametrize("start", [0, 3, 5])
def test_images_and_labels_agree_in_every_round(start: int, kind: type[MemoryImages]) -> None:
    alphas, labels = received(start, kind=kind), told(start)
    assert [alpha.round for alpha in alphas] == [entry for entry, _ in labels] == list(messages(PLAN.rounds(start)))
    for alpha, (entry, label_B) in zip(alphas, labels, strict=True):
        offset = 0 if entry.phase == "train" else 100
        assert label_B.dtype == torch.int64 and len(label_B) == entry.size
        assert numbers(alpha) == (label_B + offset).tolist()


@pytest.mark.parametrize("epoch", [0, 1])
def test_every_training_image_comes_at_most_once_an_epoch(epoch: int) -> None:
    of_epoch = [alpha for alpha in received() if alpha.round.phase == "train" and alpha.round.epoch == epoch]
    seen = [number for alpha in of_epoch for number in numbers(alpha)]
    assert len(seen) == len(set(seen)) == 20 and set(seen) <= set(range(NUM_TRAIN))
    assert seen == epoch_order(0, epoch, NUM_TRAIN)[:20].tolist()


def test_every_test_image_comes_once_and_in_order() -> None:
    tested = [number for alpha in received() if alpha.round.phase == "evaluate" for number in numbers(alpha)]
    assert tested == 2 * list(range(100, 100 + NUM_TEST))


def test_another_seed_gives_another_order() -> None:
    assert [numbers(alpha) for alpha in received(seed=0)] != [numbers(alpha) for alpha in received(seed=1)]


@pytest.mark.parametrize("start", range(10))
def test_a_resumed_run_receives_the_tail_of_the_whole_one(start: int) -> None:
    whole = list(zip(received(config=FULL), told(), strict=True))
    first = next(place for place, (_, (entry, _)) in enumerate(whole) if entry.phase == "train" and entry.step == start)
    resumed = zip(received(start, config=FULL), told(start), strict=True)
    for (expected, labels), (found, found_labels) in zip(whole[first:], resumed, strict=True):
        assert found.round == expected.round == labels[0] == found_labels[0]
        assert torch.equal(found.alpha_BCHW, expected.alpha_BCHW)
        assert torch.equal(found_labels[1], labels[1])


@pytest.mark.parametrize("kind", [MemoryImages, EagerImages])
def test_training_batches_are_augmented_by_seed_epoch_and_batch(kind: type[MemoryImages]) -> None:
    for alpha in received(seed=7, config=FULL, kind=kind):
        entry = alpha.round
        if entry.phase == "train":
            index_B = batch_index(epoch_order(7, entry.epoch, NUM_TRAIN), entry.batch, BATCH)
            draws = stream(7, "augment", entry.epoch, entry.batch)
            expected_BCHW = augment(arrays().train_NCHW[index_B], FULL, draws)
            assert torch.equal(alpha.alpha_BCHW.round().to(torch.uint8), expected_BCHW)
            assert not torch.equal(expected_BCHW, arrays().train_NCHW[index_B])


def test_test_batches_are_not_augmented() -> None:
    plain, changed = received(config=PLAIN), received(config=FULL)
    for before, after in zip(plain, changed, strict=True):
        same = torch.equal(before.alpha_BCHW, after.alpha_BCHW)
        assert same == (before.round.phase == "evaluate")


def test_images_are_normalised_a_value_a_channel() -> None:
    images = MemoryImages(arrays(), DataConfig(name="npz", mean=[0.25], std=[0.5]))
    source = ImageSource(images, PLAN.rounds(), 0, PLAIN)
    index_B = batch_index(epoch_order(0, 0, NUM_TRAIN), 0, BATCH)
    expected_BCHW = (arrays().train_NCHW[index_B].to(torch.float64) / 255 - 0.25) / 0.5
    torch.testing.assert_close(source.recv().alpha_BCHW, expected_BCHW.to(torch.float32))
