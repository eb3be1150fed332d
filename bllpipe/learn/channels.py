"""A block's forward message: one number a channel, and what the feedback and its observers make of it.

Shapes: B images, C channels, H x W positions, K classes, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, layer_norm

LEAST_DEVIATION = 1e-3  # of a channel over the batch


def channel_means(alpha: Tensor) -> Tensor:
    """The parameters a of the forward message, float32 [B, C]: [B, C, H, W] over positions, [B, T, C] over tokens."""
    if alpha.dim() == 4:  # added up in float32 as they are read: no copy of alpha in that format
        return alpha.mean(dim=(2, 3), dtype=torch.float32)
    return alpha.mean(dim=1, dtype=torch.float32) if alpha.dim() == 3 else alpha.float()


def known_means(alpha: Tensor, means_BC: Tensor) -> Tensor:
    """``channel_means(alpha)`` with their gradients, where the values are known already: alpha is not read."""
    if alpha.dim() < 3:
        return alpha.float()
    return _KnownMeans.apply(alpha, means_BC)  # type: ignore[no-any-return,no-untyped-call]  # torch leaves it untyped


class _KnownMeans(torch.autograd.Function):
    """The gradient of a mean needs no value of what it is the mean of."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, means_BC: Tensor) -> Tensor:
        ctx.shape, ctx.dtype, ctx.num_positions = alpha.shape, alpha.dtype, alpha.numel() // means_BC.numel()
        return means_BC.view_as(means_BC)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient_BC,) = gradients
        one_each = gradient_BC[:, :, None, None] if len(ctx.shape) == 4 else gradient_BC[:, None]
        return (one_each.expand(ctx.shape) / ctx.num_positions).to(ctx.dtype), None


def _over_batch(mean_BC: Tensor) -> Tensor:
    """Every channel with mean 0 and variance 1 over the batch, tests included."""
    centred_BC = mean_BC - mean_BC.mean(dim=0)
    return centred_BC / (centred_BC.square().mean(dim=0) + LEAST_DEVIATION**2).sqrt()


NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda mean_BC: mean_BC,
    "sample": lambda mean_BC: layer_norm(mean_BC, mean_BC.shape[1:]),
    "batch": _over_batch,
}


def forward_message(alpha: Tensor, normalization: str) -> Tensor:
    """What is compared with beta, float32 [B, C]: the channel means, as they are or normalised."""
    return NORMALIZATIONS[normalization](channel_means(alpha))


def num_channels(alpha_shape: Sequence[int]) -> int:
    """How many channel means an alpha of ``alpha_shape`` (without the batch) has."""
    return alpha_shape[0] if len(alpha_shape) == 3 else alpha_shape[-1]


def one_hot(label_B: Tensor, num_classes: int) -> Tensor:
    """Which class each label is, bool [B, K]. Unlike torch's own it looks at no value, and so waits for no device."""
    return label_B.unsqueeze(1) == torch.arange(num_classes, device=label_B.device)


def class_statistics(statistic_BC: Tensor, label_B: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Per-class sums S [K, C] and counts n [K]: all that a feedback network of labels needs.

    A feedback network sees only the label, so the squared error of Gaussians on a batch is
    sum_c n_c |g_c|^2 - 2 g_c . S_c and a constant. A matrix product, because it is deterministic on a GPU too.
    """
    member_BK = one_hot(label_B, num_classes).to(statistic_BC.dtype)
    return member_BK.T @ statistic_BC, member_BK.sum(dim=0)


def alignment(alpha_BC: Tensor, beta_BC: Tensor, known_B: Tensor) -> Tensor:
    """How far alpha points where beta points: the cosine between the two, each less its mean over the batch (after a
    ReLU all means are positive, and any two would look alike), averaged over the samples that have a beta."""
    num_known = known_B.sum().clamp(min=1)
    weight_B1 = (known_B / num_known).unsqueeze(1)
    centred_alpha_BC = alpha_BC - (weight_B1 * alpha_BC).sum(dim=0)
    centred_beta_BC = beta_BC - (weight_B1 * beta_BC).sum(dim=0)
    return (cosine_similarity(centred_alpha_BC, centred_beta_BC, dim=1) * known_B).sum() / num_known
