"""Block-local learning (paper, eq. 5 and 6): KL(rho || alpha) and a predictive loss for the entropy term.

The KL alone is smallest for an output that is constant within a class, so the predictive loss of the local head
(Nokland & Eidnes 2019, used in section 3 of the paper) is not optional; ``kl_weight`` 0 is the control that shows what
the feedback adds.

Shapes: B images, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bllpipe.config.schema import ObjectiveConfig
from bllpipe.learn.channels import NORMALIZATIONS, channel_means, known_means, num_channels
from bllpipe.learn.families import FAMILIES, Family, Gaussian
from bllpipe.learn.local import predictive
from bllpipe.ports import Target

DECAY = 0.99  # of the learned variance, from step to step
LEAST_VARIANCE = 1e-4


def posterior_kl(family: Family, alpha_BC: Tensor, beta_BC: Tensor, known_B: Tensor) -> Tensor:
    """KL(rho || alpha), nats, summed over the channels, mean over the batch.

    Samples with ``known_B`` 0 have no feedback message yet and contribute nothing.
    """
    return (family.divergence(alpha_BC, beta_BC) * known_B).mean()


class BlockLocal(nn.Module):
    """kl_weight * KL + pred_weight * CE(head(alpha), y), with messages of ``config.family``."""

    takes_means = True

    def __init__(self, config: ObjectiveConfig, alpha_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.learned = LearnedVariance(num_channels(alpha_shape)) if config.family == "gaussian_learned" else None

    def forward(
        self, alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor, means_BC: Tensor | None = None
    ) -> dict[str, Tensor]:
        found_BC = channel_means(alpha) if means_BC is None else known_means(alpha, means_BC)
        alpha_BC = NORMALIZATIONS[self.config.normalize](found_BC)
        kl = posterior_kl(self._family(alpha_BC, target), alpha_BC, target.beta_BC, target.known_B)
        pred = predictive(self.config, scores_BK, target)
        return {"kl": self.config.kl_weight * kl, "pred": self.config.pred_weight * pred}

    def _family(self, alpha_BC: Tensor, target: Target) -> Family:
        if self.learned is None:
            return FAMILIES[self.config.family]
        if self.training:
            self.learned.absorb(alpha_BC.detach() - target.beta_BC, target.known_B)
        return Gaussian(self.learned.variance_C.clamp(min=LEAST_VARIANCE))


class LearnedVariance(nn.Module):
    """Gaussians' variance per channel by maximum likelihood: the decayed mean of (a - b)^2.

    No gradient passes: a variance that followed the KL would grow without end.
    """

    variance_C: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("variance_C", torch.ones(channels))

    @torch.no_grad()
    def absorb(self, error_BC: Tensor, known_B: Tensor) -> None:
        """Takes in the distances a - b of one batch."""
        num_known = known_B.sum()
        found_C = (error_BC.square() * known_B.unsqueeze(1)).sum(dim=0) / num_known.clamp(min=1)
        self.variance_C.lerp_(found_C, (1 - DECAY) * (num_known > 0).to(found_C.dtype))
