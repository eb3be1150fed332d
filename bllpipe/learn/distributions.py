"""The messages alpha and beta as exponential families, p(z) = h(z) exp(<eta, T(z)> - A(eta)). For all of them the
posterior rho = alpha * beta has the natural parameters eta_alpha + eta_beta (paper, eq. 2), and

    KL(rho || alpha) = <eta_beta, mu(eta_rho)> - A(eta_rho) + A(eta_alpha),   mu = dA / d eta.

A block's channel means are the message: a mean for Gaussians, a logit for Bernoulli variables, the logits of one
categorical variable over the channels.

A feedback that minimised this KL would learn eta_beta = 0, no message, wherever the family has such a parameter; a
Gaussian of fixed variance has none. So the feedback is fitted by maximum likelihood: beta gets the expected statistics
of its class, which for fixed Gaussians minimises the KL as well.

Shapes: B messages or images, C channels, P natural parameters a channel, H x W positions, K classes, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, layer_norm, softplus

from bllpipe.utils.tensors import full_precision

MIN_PROBABILITY = 1e-6  # of beta
MIN_DEVIATION = 1e-3  # of a channel over the batch
CELLS = 2  # rows, and columns, of cells


class Family(Protocol):
    """An exponential family."""

    def natural(self, message_BC: Tensor) -> Tensor:
        """eta [B, C] or [B, C, P] of a message."""

    def log_partition(self, eta: Tensor) -> Tensor:
        """A(eta) [B], summed over the channels."""

    def mean(self, eta: Tensor) -> Tensor:
        """mu = E[T(z)] = dA / d eta, of the shape of eta."""

    def statistic(self, message_BC: Tensor) -> Tensor:
        """E[z], [B, C], which the feedback averages over a class."""

    def message(self, statistic_BC: Tensor) -> Tensor:
        """The message that has this statistic."""

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
    """-log beta(z) of observations z with these statistics, ``weight_B`` of them a row; without terms that do not
    depend on beta. The statistics are sums over the class, not means.
    """
    eta = family.natural(beta_BC)
    first_BC = eta if eta.dim() == 2 else eta[..., 0]
    return (weight_B * family.log_partition(eta)).sum() - (first_BC * statistic_BC).sum()


@dataclass(frozen=True)
class Gaussian:
    """Independent Gaussians N(a, s^2) with a known variance, 1 or a value a channel [C]; T(z) = (z, z^2)."""

    variance: Tensor | float = 1.0

    def natural(self, message_BC: Tensor) -> Tensor:
        variance = self.variance
        # filled on the device: copying a number to it synchronizes the host, and cannot be captured
        precision = 1 / (variance if isinstance(variance, Tensor) else message_BC.new_full((), variance))
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
        """sum_j (a_j - b_j)^2 / (8 s^2): the general form minus C (log 2 - 1/2) / 2, and without its cancellation.

        rho = N((a + b) / 2, s^2 / 2) for Gaussians of equal variance (paper, section 2.2).
        """
        difference_BC = (alpha_BC + beta_BC) / 2 - alpha_BC
        return (difference_BC.square() / self.variance).sum(dim=1) / 2


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
        return statistic_BC.logit(eps=MIN_PROBABILITY)

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
        return statistic_BC.clamp(min=MIN_PROBABILITY).log()

    def divergence(self, alpha_BC: Tensor, beta_BC: Tensor) -> Tensor:
        return kl_of_posterior(self, alpha_BC, beta_BC)


FAMILIES: dict[str, Family] = {
    "gaussian": Gaussian(),
    "gaussian_learned": Gaussian(),
    "bernoulli": Bernoulli(),
    "categorical": Categorical(),
}


def channel_means(alpha: Tensor, tokens: str = "mean") -> Tensor:
    """The parameters a of the forward message, [B, C] in at least float32: [B, C, H, W] over positions, [B, T, C] over
    tokens, or with ``tokens`` "class" those of the first token."""
    if alpha.dim() == 3 and tokens == "class":
        return full_precision(alpha[:, 0])
    if alpha.dim() < 3:
        return full_precision(alpha)
    dtype = alpha.dtype if alpha.dtype == torch.float64 else torch.float32
    # accumulated in float32 without a float32 copy of alpha
    return alpha.mean(dim=(2, 3) if alpha.dim() == 4 else 1, dtype=dtype)


def cell_means(alpha: Tensor, tokens: str = "mean") -> Tensor:
    """The channel means of each of at most 2x2 cells of maps [B, C, H, W], float32 [B, cells * C]; of tokens and
    vectors, which have no rows, ``channel_means``."""
    if alpha.dim() != 4:
        return channel_means(alpha, tokens)
    height, width = (min(CELLS, side) for side in alpha.shape[2:])
    cells = [cell for rows in alpha.tensor_split(height, 2) for cell in rows.tensor_split(width, 3)]
    return torch.cat([channel_means(cell) for cell in cells], dim=1)


# What beta is about, by ``objective.message``, of (alpha, objective.tokens); the head's embedding is the third
# (learn/heads.py).
MESSAGES: dict[str, Callable[[Tensor, str], Tensor]] = {"means": channel_means, "cells": cell_means}


def known_means(alpha: Tensor, means_BC: Tensor, tokens: str = "mean") -> Tensor:
    """``channel_means(alpha)`` with their gradients, where ``means_BC`` are their values: alpha is not read."""
    if alpha.dim() < 3 or (alpha.dim() == 3 and tokens == "class"):
        return channel_means(alpha, tokens)
    return _KnownMeans.apply(alpha, means_BC)  # type: ignore[no-any-return,no-untyped-call]  # torch leaves it untyped


class _KnownMeans(torch.autograd.Function):
    """The gradient of a mean does not depend on the values."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, means_BC: Tensor) -> Tensor:
        ctx.shape, ctx.dtype, ctx.num_positions = alpha.shape, alpha.dtype, alpha.numel() // means_BC.numel()
        return means_BC.view_as(means_BC)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient_BC,) = gradients
        broadcast = gradient_BC[:, :, None, None] if len(ctx.shape) == 4 else gradient_BC[:, None]
        return (broadcast.expand(ctx.shape) / ctx.num_positions).to(ctx.dtype), None


def _normalized_over_batch(mean_BC: Tensor) -> Tensor:
    """Every channel with mean 0 and variance 1 over the batch, in tests too."""
    centred_BC = mean_BC - mean_BC.mean(dim=0)
    return centred_BC / (centred_BC.square().mean(dim=0) + MIN_DEVIATION**2).sqrt()


# From channel means to the forward message, which is compared with beta, float32 [B, C].
NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda mean_BC: mean_BC,
    "sample": lambda mean_BC: layer_norm(mean_BC, mean_BC.shape[1:]),
    "batch": _normalized_over_batch,
}


def num_channels(alpha_shape: Sequence[int]) -> int:
    """The number of channel means of an alpha of ``alpha_shape`` (without the batch)."""
    return alpha_shape[0] if len(alpha_shape) == 3 else alpha_shape[-1]


def one_hot(label_B: Tensor, num_classes: int) -> Tensor:
    """One-hot labels, bool [B, K]. Unlike torch's own function it reads no value, and so does not synchronize."""
    return label_B.unsqueeze(1) == torch.arange(num_classes, device=label_B.device)


def class_statistics(statistic_BC: Tensor, label_B: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Per-class sums S [K, C] and counts n [K], the sufficient statistics for a feedback network of labels.

    A feedback network sees only the label, so the squared error of Gaussians on a batch is
    sum_c n_c |g_c|^2 - 2 g_c . S_c and a constant. A matrix product, because it is deterministic on a GPU too.
    """
    member_BK = one_hot(label_B, num_classes).to(statistic_BC.dtype)
    return member_BK.T @ statistic_BC, member_BK.sum(dim=0)


def alignment(alpha_BC: Tensor, beta_BC: Tensor, known_B: Tensor) -> Tensor:
    """The cosine between alpha and beta, each minus its mean over the batch (after a ReLU all means are positive, and
    any two would be similar), averaged over the samples that have a beta."""
    num_known = known_B.sum().clamp(min=1)
    weight_B1 = (known_B / num_known).unsqueeze(1)
    centred_alpha_BC = alpha_BC - (weight_B1 * alpha_BC).sum(dim=0)
    centred_beta_BC = beta_BC - (weight_B1 * beta_BC).sum(dim=0)
    return (cosine_similarity(centred_alpha_BC, centred_beta_BC, dim=1) * known_B).sum() / num_known
