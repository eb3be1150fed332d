"""Channel-wise Gaussians of known variance, the paper's choice for alpha and beta (section 2.2).

Shapes: B images, C channels, H x W positions, K classes, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import one_hot


def channel_means(alpha: Tensor) -> Tensor:
    """The means a of the forward message, float32 [B, C]: [B, C, H, W] over positions, [B, T, C] over tokens."""
    alpha = alpha.float()
    if alpha.dim() == 4:
        return alpha.mean(dim=(2, 3))
    return alpha.mean(dim=1) if alpha.dim() == 3 else alpha


def num_channels(alpha_shape: Sequence[int]) -> int:
    """How many channel means an alpha of ``alpha_shape`` (without the batch) has."""
    return alpha_shape[0] if len(alpha_shape) == 3 else alpha_shape[-1]


def posterior_mean(alpha_BC: Tensor, beta_BC: Tensor) -> Tensor:
    """The mean of rho = alpha * beta for equal variances (paper, eq. 2); rho's variance is half of theirs."""
    return (alpha_BC + beta_BC) / 2


def posterior_kl(alpha_BC: Tensor, beta_BC: Tensor, known_B: Tensor) -> Tensor:
    """KL(rho || alpha) of unit Gaussians (paper, eq. 2 and the first term of eq. 5), nats, mean over the batch.

    With rho = N((a + b) / 2, 1 / 2) and alpha = N(a, 1) it is sum_j (a_j - b_j)^2 / 8 and a constant, which is left
    out. Samples with ``known_B`` 0 have no feedback message yet and contribute nothing.
    """
    kl_B = (posterior_mean(alpha_BC, beta_BC) - alpha_BC).square().sum(dim=1) / 2
    return (kl_B * known_B).mean()


def class_statistics(alpha_BC: Tensor, label_B: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Per-class sums S [K, C] of the channel means and counts n [K]: all that a feedback network of labels needs.

    A feedback network sees only the label, so its squared error on a batch is
    sum_c n_c |g_c|^2 - 2 g_c . S_c and a constant. A matrix product, because it is deterministic on a GPU too.
    """
    member_BK = one_hot(label_B, num_classes).to(alpha_BC.dtype)
    return member_BK.T @ alpha_BC, member_BK.sum(dim=0)
