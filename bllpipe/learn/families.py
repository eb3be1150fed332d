"""The messages alpha and beta as exponential families, p(z) = h(z) exp(<eta, T(z)> - A(eta)), and what follows for any
of them: the posterior rho = alpha * beta has the natural parameters eta_alpha + eta_beta (paper, eq. 2), and

    KL(rho || alpha) = <eta_beta, mu(eta_rho)> - A(eta_rho) + A(eta_alpha),   mu = dA / d eta.

A block's channel means are the message: a mean for Gaussians, a logit for Bernoulli variables, the logits of one
categorical variable over the channels.

A feedback that minimised this KL would learn to say nothing (eta_beta = 0) wherever the family has such a message;
only a Gaussian of fixed variance always says something. So the feedback is fitted by maximum likelihood: beta gets the
expected statistics of its class, which for fixed Gaussians is the minimum of the KL as well.

Shapes: B messages, C channels, P natural parameters a channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

SMALLEST = 1e-6  # probabilities that beta may take


class Family(Protocol):
    """What bllpipe needs of an exponential family."""

    def natural(self, message_BC: Tensor) -> Tensor:
        """eta [B, C] or [B, C, P] of a message."""

    def log_partition(self, eta: Tensor) -> Tensor:
        """A(eta) [B], summed over the channels."""

    def mean(self, eta: Tensor) -> Tensor:
        """mu = E[T(z)] = dA / d eta, of the shape of eta."""

    def statistic(self, message_BC: Tensor) -> Tensor:
        """What the feedback averages over a class: E[z], [B, C]."""

    def message(self, statistic_BC: Tensor) -> Tensor:
        """The message whose statistic that is."""

    def divergence(self, alpha_BC: Tensor, beta_BC: Tensor) -> Tensor:
        """KL(rho || alpha) [B] in nats, up to a constant that depends on neither message."""


def posterior(family: Family, alpha_BC: Tensor, beta_BC: Tensor) -> Tensor:
    """eta of rho = alpha * beta (paper, eq. 2)."""
    return family.natural(alpha_BC) + family.natural(beta_BC)


def kl_of_posterior(family: Family, alpha_BC: Tensor, beta_BC: Tensor) -> Tensor:
    """KL(rho || alpha) [B] in nats, summed over the channels (first term of eq. 5)."""
    eta_beta, eta_rho = family.natural(beta_BC), posterior(family, alpha_BC, beta_BC)
    inner_B = (eta_beta * family.mean(eta_rho)).flatten(1).sum(dim=1)
    return inner_B - family.log_partition(eta_rho) + family.log_partition(family.natural(alpha_BC))


def negative_log_likelihood(family: Family, beta_BC: Tensor, statistic_BC: Tensor, weight_B: Tensor) -> Tensor:
    """-log beta(z) of observations z with these statistics, ``weight_B`` of them a row; without what beta leaves alone.

    The statistics are sums: those of the class, not its mean.
    """
    eta = family.natural(beta_BC)
    first_BC = eta if eta.dim() == 2 else eta[..., 0]
    return (weight_B * family.log_partition(eta)).sum() - (first_BC * statistic_BC).sum()


@dataclass(frozen=True)
class Gaussian:
    """Independent Gaussians N(a, s^2) with a known variance, 1 or a value a channel [C]; T(z) = (z, z^2)."""

    variance: Tensor | float = 1.0

    def natural(self, message_BC: Tensor) -> Tensor:
        given = self.variance
        # filled on the device itself: a number that is copied there makes the host wait, and cannot be captured
        precision = 1 / (given if isinstance(given, Tensor) else message_BC.new_full((), given))
        return torch.stack([message_BC * precision, (-precision / 2).expand_as(message_BC)], dim=-1)

    def log_partition(self, eta: Tensor) -> Tensor:
        first_BC, second_BC = eta.unbind(dim=-1)
        return (-first_BC.square() / (4 * second_BC) - (-2 * second_BC).log() / 2).sum(dim=1)

    def mean(self, eta: Tensor) -> Tensor:
        first_BC, second_BC = eta.unbind(dim=-1)
        mean_BC, variance_BC = -first_BC / (2 * second_BC), -1 / (2 * second_BC)
        return torch.stack([mean_BC, mean_BC.square() + variance_BC], dim=-1)

    def statistic(self, message_BC: Tensor) -> Tensor:
        return message_BC

    def message(self, statistic_BC: Tensor) -> Tensor:
        return statistic_BC

    def divergence(self, alpha_BC: Tensor, beta_BC: Tensor) -> Tensor:
        """sum_j (a_j - b_j)^2 / (8 s^2): the general form, less C (log 2 - 1/2) / 2, and without its cancellation.

        rho = N((a + b) / 2, s^2 / 2).
        """
        towards_BC = posterior_mean(alpha_BC, beta_BC) - alpha_BC
        return (towards_BC.square() / self.variance).sum(dim=1) / 2


def posterior_mean(alpha_BC: Tensor, beta_BC: Tensor) -> Tensor:
    """The mean of rho for Gaussians of equal variance (paper, section 2.2)."""
    return (alpha_BC + beta_BC) / 2


@dataclass(frozen=True)
class Bernoulli:
    """Independent binary variables with logits a; T(z) = z."""

    def natural(self, message_BC: Tensor) -> Tensor:
        return message_BC

    def log_partition(self, eta: Tensor) -> Tensor:
        return softplus(eta).sum(dim=1)

    def mean(self, eta: Tensor) -> Tensor:
        return eta.sigmoid()

    def statistic(self, message_BC: Tensor) -> Tensor:
        return message_BC.sigmoid()

    def message(self, statistic_BC: Tensor) -> Tensor:
        return statistic_BC.logit(eps=SMALLEST)

    def divergence(self, alpha_BC: Tensor, beta_BC: Tensor) -> Tensor:
        return kl_of_posterior(self, alpha_BC, beta_BC)


@dataclass(frozen=True)
class Categorical:
    """One variable that takes one of the C channels as its value, with logits a; T(z) = one-hot z."""

    def natural(self, message_BC: Tensor) -> Tensor:
        return message_BC

    def log_partition(self, eta: Tensor) -> Tensor:
        return eta.logsumexp(dim=1)

    def mean(self, eta: Tensor) -> Tensor:
        return eta.softmax(dim=1)

    def statistic(self, message_BC: Tensor) -> Tensor:
        return message_BC.softmax(dim=1)

    def message(self, statistic_BC: Tensor) -> Tensor:
        return statistic_BC.clamp(min=SMALLEST).log()

    def divergence(self, alpha_BC: Tensor, beta_BC: Tensor) -> Tensor:
        return kl_of_posterior(self, alpha_BC, beta_BC)


FAMILIES: dict[str, Family] = {
    "gaussian": Gaussian(),
    "gaussian_learned": Gaussian(),
    "bernoulli": Bernoulli(),
    "categorical": Categorical(),
}
