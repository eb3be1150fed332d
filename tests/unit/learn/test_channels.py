"""Forward messages: what the feedback learns of them, and how far they point its way."""

import pytest
import torch

from bllpipe.learn.distributions import (
    NORMALIZATIONS,
    alignment,
    channel_means,
    class_statistics,
    known_means,
    num_channels,
)


@pytest.mark.parametrize(("shape", "channels"), [((6, 4, 4), 6), ((9, 6), 6), ((6,), 6)])
def test_channel_means_of_maps_tokens_and_vectors(shape: tuple[int, ...], channels: int) -> None:
    assert channel_means(torch.randn(2, *shape)).shape == (2, channels)
    assert num_channels(shape) == channels


FORMATS = [torch.float32, torch.bfloat16]
SHAPES = [(6, 8, 8, 8), (33, 64, 7, 5), (64, 256, 8, 8), (3, 16, 1, 1), (4, 65, 48), (9, 10)]


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_means_and_their_gradients_have_the_bits_of_a_mean_of_a_float32_copy(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """However they are computed: without the copy, or not again where they are known."""
    made = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for alpha in (made, made.contiguous(memory_format=torch.channels_last) if made.dim() == 4 else made):
        copied, read, known = (alpha.clone().requires_grad_() for _ in range(3))
        over = tuple(range(2, alpha.dim())) if alpha.dim() == 4 else (1,)
        expected = copied.float().mean(dim=over) if alpha.dim() > 2 else copied.float()
        found = [channel_means(read), known_means(known, channel_means(alpha))]
        gradient_BC = torch.randn(expected.shape)
        expected.backward(gradient_BC)
        for each, leaf in zip(found, (read, known), strict=True):
            each.backward(gradient_BC)
            assert torch.equal(each, expected) and each.dtype == torch.float32
            assert copied.grad is not None and leaf.grad is not None and torch.equal(leaf.grad, copied.grad)


@pytest.mark.parametrize(("normalization", "over"), [("sample", 1), ("batch", 0)])
def test_a_normalised_message_has_mean_0_and_variance_1(normalization: str, over: int) -> None:
    message_BC = NORMALIZATIONS[normalization](channel_means(3 + 2 * torch.randn(64, 48, 4, 4)))
    torch.testing.assert_close(message_BC.mean(dim=over), torch.zeros(message_BC.shape[1 - over]), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        message_BC.var(dim=over, correction=0), torch.ones(message_BC.shape[1 - over]), atol=1e-2, rtol=0
    )


def test_a_channel_that_is_the_same_for_all_images_stays_finite() -> None:
    assert NORMALIZATIONS["batch"](channel_means(torch.full((4, 3), 2.0))).eq(0).all()


def test_class_statistics_equal_a_loop() -> None:
    alpha_BC, label_B = torch.randn(11, 3), torch.randint(0, 4, (11,))
    sums_KC, counts_K = class_statistics(alpha_BC, label_B, 5)
    for label in range(5):
        torch.testing.assert_close(sums_KC[label], alpha_BC[label_B == label].sum(0))
        assert counts_K[label] == (label_B == label).sum()


def test_alignment_is_one_for_the_same_direction_and_minus_one_for_the_opposite() -> None:
    alpha_BC, known_B = torch.randn(8, 5), torch.ones(8)
    offset_C = torch.rand(5)
    assert alignment(alpha_BC, 3 * alpha_BC + offset_C, known_B).item() == pytest.approx(1, abs=1e-5)
    assert alignment(alpha_BC, -alpha_BC + offset_C, known_B).item() == pytest.approx(-1, abs=1e-5)


def test_alignment_leaves_out_samples_without_a_target() -> None:
    alpha_BC, beta_BC = torch.randn(6, 5), torch.randn(6, 5)
    known_B = torch.tensor([1.0, 1, 0, 1, 0, 0])
    of_known = alignment(alpha_BC[known_B > 0], beta_BC[known_B > 0], torch.ones(3))
    torch.testing.assert_close(alignment(alpha_BC, beta_BC, known_B), of_known)
    assert alignment(alpha_BC, beta_BC, torch.zeros(6)) == 0
