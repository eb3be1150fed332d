"""The paper's Gaussians against torch.distributions and plain loops."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from bllpipe.learn.gaussian import channel_means, class_statistics, num_channels, posterior_kl, posterior_mean


def test_posterior_is_the_normalised_product_of_both_messages() -> None:
    grid = torch.linspace(-12, 12, 48001, dtype=torch.float64)
    product = (Normal(1.5, 1.0).log_prob(grid) + Normal(-0.5, 1.0).log_prob(grid)).exp()
    mean = (grid * product).sum() / product.sum()
    variance = ((grid - mean) ** 2 * product).sum() / product.sum()
    assert posterior_mean(torch.tensor(1.5), torch.tensor(-0.5)).item() == pytest.approx(mean.item())
    assert variance.item() == pytest.approx(0.5, abs=1e-6)


def test_kl_equals_that_of_the_distributions_up_to_its_constant() -> None:
    alpha_BC, beta_BC = torch.randn(5, 7), torch.randn(5, 7)
    alpha = Normal(alpha_BC, 1.0)
    full = kl_divergence(Normal(posterior_mean(alpha_BC, beta_BC), 0.5**0.5), alpha).sum(1).mean()
    constant = kl_divergence(Normal(alpha_BC, 0.5**0.5), alpha).sum(1).mean()
    found = posterior_kl(alpha_BC, beta_BC, torch.ones(5))
    torch.testing.assert_close(found, full - constant)
    torch.testing.assert_close(found, (alpha_BC - beta_BC).square().sum(1).mean() / 8)


def test_a_class_without_statistics_contributes_nothing() -> None:
    alpha_BC = torch.randn(4, 3, requires_grad=True)
    known_B = torch.tensor([1.0, 0.0, 1.0, 0.0])
    posterior_kl(alpha_BC, torch.zeros(4, 3), known_B).backward()
    assert alpha_BC.grad is not None
    assert alpha_BC.grad[1].abs().sum() == 0 and alpha_BC.grad[0].abs().sum() > 0


@pytest.mark.parametrize(("shape", "channels"), [((6, 4, 4), 6), ((9, 6), 6), ((6,), 6)])
def test_channel_means_of_maps_tokens_and_vectors(shape: tuple[int, ...], channels: int) -> None:
    assert channel_means(torch.randn(2, *shape)).shape == (2, channels)
    assert num_channels(shape) == channels


def test_class_statistics_equal_a_loop() -> None:
    alpha_BC, label_B = torch.randn(11, 3), torch.randint(0, 4, (11,))
    sums_KC, counts_K = class_statistics(alpha_BC, label_B, 5)
    for label in range(5):
        torch.testing.assert_close(sums_KC[label], alpha_BC[label_B == label].sum(0))
        assert counts_K[label] == (label_B == label).sum()
