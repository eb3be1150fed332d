"""Posterior and KL in closed form against numerical integration, enumeration, torch.distributions and autograd."""

import itertools
from math import log

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from bllpipe.learn.distributions import (
    FAMILIES,
    Bernoulli,
    Categorical,
    Family,
    Gaussian,
    kl_of_posterior,
    negative_log_likelihood,
    posterior,
)
from bllpipe.learn.losses import posterior_kl

torch.manual_seed(0)
ALPHA_BC = torch.randn(4, 3, dtype=torch.float64)
BETA_BC = torch.randn(4, 3, dtype=torch.float64)
VARIANCE_C = torch.tensor([0.5, 1.0, 2.5], dtype=torch.float64)
EVERY: list[Family] = [Gaussian(), Gaussian(VARIANCE_C), Bernoulli(), Categorical()]


def integrated_gaussian_kl(alpha_BC: Tensor, beta_BC: Tensor, variance_C: Tensor) -> Tensor:
    """KL(rho || alpha) [B] by the trapezoidal rule, with rho the normalised product of the two densities."""
    z = torch.linspace(-30, 30, 60_001, dtype=torch.float64).view(-1, 1, 1)
    log_alpha = Normal(alpha_BC, variance_C.sqrt()).log_prob(z)
    log_product = log_alpha + Normal(beta_BC, variance_C.sqrt()).log_prob(z)
    mass = torch.trapezoid(log_product.exp(), z.flatten(), dim=0)
    log_rho = log_product - mass.log()
    return torch.trapezoid(log_rho.exp() * (log_rho - log_alpha), z.flatten(), dim=0).sum(dim=1)


def enumerated_kl(log_alpha_BV: Tensor, log_beta_BV: Tensor) -> Tensor:
    """KL(rho || alpha) [B] over all V values of a discrete variable."""
    log_rho_BV = (log_alpha_BV + log_beta_BV).log_softmax(dim=1)
    return (log_rho_BV.exp() * (log_rho_BV - log_alpha_BV)).sum(dim=1)


@pytest.mark.parametrize("variance_C", [torch.ones(3, dtype=torch.float64), VARIANCE_C])
def test_gaussian_kl_equals_the_integral(variance_C: Tensor) -> None:
    integral_B = integrated_gaussian_kl(ALPHA_BC, BETA_BC, variance_C)
    torch.testing.assert_close(kl_of_posterior(Gaussian(variance_C), ALPHA_BC, BETA_BC), integral_B)
    constant = 3 * (log(2) - 0.5) / 2
    torch.testing.assert_close(Gaussian(variance_C).divergence(ALPHA_BC, BETA_BC), integral_B - constant)


def test_bernoulli_kl_equals_the_sum_over_all_values() -> None:
    values_VC = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=torch.float64)

    def log_probability(logit_BC: Tensor) -> Tensor:
        return (logit_BC @ values_VC.T) - torch.nn.functional.softplus(logit_BC).sum(dim=1, keepdim=True)

    expected_B = enumerated_kl(log_probability(ALPHA_BC), log_probability(BETA_BC))
    torch.testing.assert_close(Bernoulli().divergence(ALPHA_BC, BETA_BC), expected_B)


def test_categorical_kl_equals_the_sum_over_all_values() -> None:
    expected_B = enumerated_kl(ALPHA_BC.log_softmax(1), BETA_BC.log_softmax(1))
    torch.testing.assert_close(Categorical().divergence(ALPHA_BC, BETA_BC), expected_B)


def test_gaussian_posterior_has_the_mean_between_and_half_the_variance() -> None:
    family = Gaussian(VARIANCE_C)
    mean_BC, square_BC = family.mean(posterior(family, ALPHA_BC, BETA_BC)).unbind(-1)
    torch.testing.assert_close(mean_BC, (ALPHA_BC + BETA_BC) / 2)
    torch.testing.assert_close(square_BC - mean_BC.square(), (VARIANCE_C / 2).expand(4, 3))
    kl_B = kl_divergence(Normal(mean_BC, (VARIANCE_C / 2).sqrt()), Normal(ALPHA_BC, VARIANCE_C.sqrt())).sum(1)
    torch.testing.assert_close(kl_of_posterior(family, ALPHA_BC, BETA_BC), kl_B)


@pytest.mark.parametrize("family", EVERY, ids=repr)
def test_the_mean_is_the_gradient_of_the_log_partition(family: Family) -> None:
    eta = family.natural(ALPHA_BC).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(family.log_partition(eta).sum(), eta)
    torch.testing.assert_close(family.mean(eta), gradient)


@pytest.mark.parametrize("family", EVERY, ids=repr)
def test_nothing_is_gained_when_alpha_says_it_already(family: Family) -> None:
    """The KL is never negative, and a message that says nothing costs nothing."""
    assert (kl_of_posterior(family, ALPHA_BC, BETA_BC) >= 0).all()
    if not isinstance(family, Gaussian):
        silent_BC = torch.zeros_like(ALPHA_BC)
        torch.testing.assert_close(family.divergence(ALPHA_BC, silent_BC), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("family", EVERY, ids=repr)
def test_a_statistic_has_one_message(family: Family) -> None:
    again_BC = family.message(family.statistic(ALPHA_BC))
    torch.testing.assert_close(family.statistic(again_BC), family.statistic(ALPHA_BC))


@pytest.mark.parametrize("family", EVERY, ids=repr)
def test_the_mean_statistic_of_a_class_is_the_most_likely_message(family: Family) -> None:
    """The closed form is where the gradient of the feedback's loss vanishes."""
    sums_C = family.statistic(ALPHA_BC).sum(dim=0, keepdim=True)
    beta_C = family.message(sums_C / 4).requires_grad_()
    loss = negative_log_likelihood(family, beta_C, sums_C, torch.tensor([4.0]))
    (gradient,) = torch.autograd.grad(loss, beta_C)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_class_without_statistics_contributes_nothing(name: str) -> None:
    alpha_BC = ALPHA_BC.clone().requires_grad_()
    posterior_kl(FAMILIES[name], alpha_BC, BETA_BC, torch.tensor([1.0, 0, 1, 0])).backward()
    assert alpha_BC.grad is not None
    assert alpha_BC.grad[1].abs().sum() == 0 and alpha_BC.grad[0].abs().sum() > 0
