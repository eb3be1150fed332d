"""Activations in 8 bits: how far from them arrives what is sent."""

import pytest
import torch

from bllpipe.distributed.eight_bits import dequantise, num_channels, quantise

SHAPES = {"vectors": (16, 5), "tokens": (4, 7, 5), "maps": (4, 5, 6, 6)}


def test_codes_by_hand() -> None:
    codes, (scale_C, offset_C) = quantise(torch.tensor([[-1.0, 3.0], [0.0, 3.0], [254.0, 3.0], [100.4, 3.0]]))
    assert codes.dtype == torch.uint8 and codes.tolist() == [[0, 0], [1, 0], [255, 0], [101, 0]]
    assert scale_C.tolist() == [1.0, 1.0], "of a constant channel any scale will do"
    assert offset_C.tolist() == [-1.0, 3.0]
    found = dequantise(codes, torch.stack([scale_C, offset_C]))
    assert found.tolist() == [[-1.0, 3.0], [0.0, 3.0], [254.0, 3.0], [100.0, 3.0]]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_what_arrives_is_within_half_a_step_of_its_channel(shape: tuple[int, ...]) -> None:
    """Channels differ by powers of ten: a range for all of them together would lose the small ones."""
    dim = 2 if len(shape) == 3 else 1
    sizes = (10.0 ** torch.arange(-2, 3)).view([-1 if each == dim else 1 for each in range(len(shape))])
    alpha = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * sizes + 3 * sizes
    codes, ranges_2C = quantise(alpha)
    assert ranges_2C.shape == (2, 5) and num_channels(shape[1:]) == 5
    step = ranges_2C[0].view(sizes.shape)  # along the channels
    error = (dequantise(codes, ranges_2C) - alpha).abs()
    assert (error <= 0.501 * step).all(), "half a step, and rounding in float32"
    assert (error.amax(dim=[each for each in range(len(shape)) if each != dim]) > 0.2 * step.flatten()).all()
    assert codes.amin() == 0 and codes.amax() == 255


def test_the_memory_format_and_the_dtype_change_no_code() -> None:
    alpha = torch.randn(4, 8, 6, 6).bfloat16()
    expected = quantise(alpha.float())
    for other in (alpha, alpha.to(memory_format=torch.channels_last), alpha.float().requires_grad_()):
        codes, ranges_2C = quantise(other)
        assert torch.equal(codes, expected[0]) and torch.equal(ranges_2C, expected[1])
        assert not ranges_2C.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_spoils_its_channel_and_no_other(value: float) -> None:
    alpha = torch.randn(4, 3, 2, 2)
    alpha[1, 2, 0, 0] = value
    found = dequantise(*quantise(alpha))
    assert found[:, 2].isnan().all()
    assert found[:, :2].isfinite().all()


def test_extreme_numbers_arrive() -> None:
    """The smallest range of float32, and one whose scale is rounded to zero."""
    tiny = torch.finfo(torch.float32).smallest_normal
    for alpha in (torch.tensor([[0.0], [tiny]]), torch.tensor([[0.0], [1e-44]]), torch.tensor([[-1e38], [1e38]])):
        codes, ranges_2C = quantise(alpha)
        step = float(ranges_2C[0])
        assert (dequantise(codes, ranges_2C) - alpha).abs().max() <= min(step, float(alpha.abs().max()))
