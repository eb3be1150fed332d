"""Keeping what later blocks may need (InfoPro, Wang et al. 2021): a greedy block throws away whatever its own head does
not use, unless it must still be able to tell what came in.

Shapes: B images, C channels, H x W positions.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss

from bllpipe.errors import ConfigError
from bllpipe.learn.local import Objective, takes_means
from bllpipe.ports import Target

SMALLEST = 1e-6


class Keeping(nn.Module):
    """``objective``, and ``weight`` times the share of the input's variance that a decoder cannot tell from alpha.

    The decoder is a 1x1 convolution from alpha's channels to the input's, and bilinear interpolation.
    """

    def __init__(
        self, objective: Objective, input_shape: Sequence[int], alpha_shape: Sequence[int], weight: float
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or len(alpha_shape) != 3:
            raise ConfigError(
                f"objective.keep_weight needs blocks between images or feature maps, but one makes "
                f"{list(alpha_shape)} of {list(input_shape)}; use --set objective.keep_weight=0"
            )
        self.objective, self.weight = objective, weight
        self.takes_means = takes_means(objective)
        self.decoder = nn.Conv2d(alpha_shape[0], input_shape[0], 1)

    def forward(
        self, alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor, means_BC: Tensor | None = None
    ) -> dict[str, Tensor]:
        x_BCHW = x.float()
        told_BCHW = interpolate(self.decoder(alpha).float(), size=x.shape[2:], mode="bilinear", align_corners=False)
        untold = mse_loss(told_BCHW, x_BCHW) / x_BCHW.var().clamp(min=SMALLEST)
        if means_BC is not None and takes_means(self.objective):
            terms = self.objective(alpha, scores_BK, target, x, means_BC)
        else:
            terms = self.objective(alpha, scores_BK, target, x)
        if "keep" in terms:
            raise ConfigError(
                "a term of the objective is called 'keep', as the one of objective.keep_weight; use another name, or "
                "--set objective.keep_weight=0"
            )
        return {**terms, "keep": self.weight * untold}
