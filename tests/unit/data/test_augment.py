"""Batched augmentation against loops over single images that draw from an equal generator."""

from collections.abc import Callable
from math import cos, floor, pi, sin

import pytest
import torch
from torch import Tensor

from bllpipe.config.schema import AugmentConfig
from bllpipe.data.loader import _crop, _flip, _rotate, augment, normalise

ALL = AugmentConfig(crop_padding=2, flip=True, rotation=20.0)
SHAPES = [(6, 3, 8, 8), (5, 1, 4, 7), (1, 4, 3, 3)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=generator(99), dtype=torch.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", [1, 2, 9])
def test_crop_equals_a_loop_over_images(shape: tuple[int, ...], padding: int) -> None:
    images_BCHW = random_images(*shape)
    batch, channels, height, width = shape
    corners = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator())
    expected_BCHW = torch.zeros_like(images_BCHW)
    for number, (top, left) in enumerate(corners.T.tolist()):
        padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
        padded[:, padding : padding + height, padding : padding + width] = images_BCHW[number]
        expected_BCHW[number] = padded[:, top : top + height, left : left + width]
    assert torch.equal(_crop(images_BCHW, padding, generator()), expected_BCHW)


def test_crop_reaches_every_window_and_no_other() -> None:
    images_BCHW = torch.ones(500, 1, 2, 2, dtype=torch.uint8)
    images_BCHW[:, 0, 0, 0] = 2  # where this corner lands is the offset
    cropped = _crop(images_BCHW, 1, generator())
    assert {tuple(place) for place in (cropped == 2).nonzero()[:, 2:].tolist()} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert len({tuple(image.flatten().tolist()) for image in cropped}) == 9


@pytest.mark.parametrize("shape", [(64, 3, 5, 4), (1, 1, 2, 2)])
def test_flip_equals_a_loop_over_images(shape: tuple[int, ...]) -> None:
    images_BCHW = random_images(*shape)
    draws = torch.rand(len(images_BCHW), generator=generator()).tolist()
    expected = [image.flip(2) if draw < 0.5 else image for image, draw in zip(images_BCHW, draws, strict=True)]
    assert torch.equal(_flip(images_BCHW, generator()), torch.stack(expected))


def test_flip_mirrors_about_half_of_the_images() -> None:
    images_BCHW = torch.tensor([0, 1], dtype=torch.uint8).expand(1000, 1, 1, 2)
    mirrored = int(_flip(images_BCHW, generator())[:, 0, 0, 0].sum())
    assert 400 < mirrored < 600


def bilinear(image_HW: Tensor, y: float, x: float) -> float:
    """The value between four pixels; outside of the image it is black."""
    top, left, value = floor(y), floor(x), 0.0
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= row < image_HW.shape[0] and 0 <= column < image_HW.shape[1]:
            value += (1 - abs(y - row)) * (1 - abs(x - column)) * float(image_HW[row, column])
    return value


def turned(image_HW: Tensor, angle: float) -> Tensor:
    """An image turned about its middle, a pixel at a time."""
    height, width = image_HW.shape
    middle_y, middle_x, result_HW = (height - 1) / 2, (width - 1) / 2, torch.zeros(height, width)
    for row in range(height):
        for column in range(width):
            y, x = row - middle_y, column - middle_x
            source_y, source_x = sin(angle) * x + cos(angle) * y, cos(angle) * x - sin(angle) * y
            result_HW[row, column] = bilinear(image_HW, source_y + middle_y, source_x + middle_x)
    return result_HW


@pytest.mark.parametrize("degrees", [5.0, 30.0, 180.0])
def test_rotation_equals_a_loop_over_pixels(degrees: float) -> None:
    images_BCHW = random_images(4, 2, 7, 5)
    found_BCHW = _rotate(images_BCHW, degrees, generator())
    for number, draw in enumerate(torch.rand(4, generator=generator()).tolist()):
        for channel in range(2):
            expected_HW = turned(images_BCHW[number, channel], (2 * draw - 1) * degrees * pi / 180)
            difference = found_BCHW[number, channel].to(torch.float32) - expected_HW
            assert difference.abs().max() < 0.51  # half a grey level: what rounding takes away


@pytest.mark.parametrize(("degrees", "quarters"), [(0.0, 0), (90.0, 1), (180.0, 2), (-90.0, 3)])
def test_rotation_by_quarter_turns_moves_whole_pixels(degrees: float, quarters: int) -> None:
    image_BCHW = random_images(1, 3, 6, 6)
    share = 2 * torch.rand(1, generator=generator()).item() - 1  # of the largest angle, for this generator
    found_BCHW = _rotate(image_BCHW, degrees / share, generator())
    assert torch.equal(found_BCHW, image_BCHW.rot90(quarters, (2, 3)))


@pytest.mark.parametrize("shape", SHAPES)
def test_augment_crops_then_mirrors_then_turns_with_one_generator(shape: tuple[int, ...]) -> None:
    images_BCHW, draws = random_images(*shape), generator()
    expected_BCHW = _rotate(_flip(_crop(images_BCHW, 2, draws), draws), 20.0, draws)
    found_BCHW = augment(images_BCHW, ALL, generator())
    assert found_BCHW.dtype == torch.uint8 and found_BCHW.shape == shape
    assert torch.equal(found_BCHW, expected_BCHW)


STEPS: dict[str, tuple[AugmentConfig, Callable[[Tensor, torch.Generator], Tensor]]] = {
    "nothing": (AugmentConfig(0, False, 0.0), lambda images, draws: images),
    "crop": (AugmentConfig(2, False, 0.0), lambda images, draws: _crop(images, 2, draws)),
    "flip": (AugmentConfig(0, True, 0.0), _flip),
    "rotation": (AugmentConfig(0, False, 9.0), lambda images, draws: _rotate(images, 9.0, draws)),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_change_that_is_off_draws_nothing(name: str) -> None:
    config, alone = STEPS[name]
    images_BCHW = random_images(8, 3, 6, 6)
    assert torch.equal(augment(images_BCHW, config, generator()), alone(images_BCHW, generator()))


def test_equal_generators_give_equal_bits_and_others_do_not() -> None:
    images_BCHW = random_images(16, 3, 8, 8)
    before = images_BCHW.clone()
    assert torch.equal(augment(images_BCHW, ALL, generator(3)), augment(images_BCHW, ALL, generator(3)))
    assert not torch.equal(augment(images_BCHW, ALL, generator(3)), augment(images_BCHW, ALL, generator(4)))
    assert torch.equal(images_BCHW, before)


def test_normalise_is_the_formula_in_float64() -> None:
    images_BCHW = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    mean, std = [0.4914, 0.1, 0.0], [0.247, 1.0, 0.003]
    mean_C, std_C = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
    found_BCHW = normalise(images_BCHW, mean, std)
    expected_BCHW = (images_BCHW.to(torch.float64) / 255 - mean_C) / std_C
    assert found_BCHW.dtype == torch.float32 and found_BCHW.is_contiguous()
    torch.testing.assert_close(found_BCHW.to(torch.float64), expected_BCHW, rtol=1e-6, atol=2e-6)
