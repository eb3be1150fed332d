"""Similarity matching (Nokland & Eidnes 2019): images of one class shall look alike to the block, others not.

Shapes: B images, C channels, H x W positions, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from bllpipe.config.schema import ObjectiveConfig
from bllpipe.learn.channels import one_hot
from bllpipe.learn.local import predictive
from bllpipe.learn.placing import without_autocast
from bllpipe.ports import Target


def similarity_matrix(features: Tensor) -> Tensor:
    """R [B, B]: cosines between the samples, from -1 to 1.

    Of [B, C, H, W] the deviation over the positions counts, [B, C]; each sample is then centred over its features.
    """
    with without_autocast(features.device):
        features = features.float()
        if features.dim() == 4:
            features = features.flatten(2).std(dim=2)
        centred_BF = features.flatten(1) - features.flatten(1).mean(dim=1, keepdim=True)
        unit_BF = normalize(centred_BF, dim=1)
        return (unit_BF @ unit_BF.T).clamp(-1, 1)


class PredSim(nn.Module):
    """(1 - b) * CE(head(alpha), y) + b * MSE(R(conv3x3(alpha)), R(one-hot y)), b = ``sim_share``.

    R compares all images of the mini-batch with each other, so a batch is never split. Tokens and vectors have no
    positions: a linear layer takes the place of the convolution.
    """

    def __init__(self, config: ObjectiveConfig, alpha_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        channels = alpha_shape[0] if len(alpha_shape) == 3 else alpha_shape[-1]
        on_positions = len(alpha_shape) == 3
        self.similarity = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            if on_positions
            else nn.Linear(channels, channels, bias=False)
        )

    def forward(self, alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor) -> dict[str, Tensor]:
        wanted_BB = similarity_matrix(one_hot(target.label_B, self.num_classes))
        sim = mse_loss(similarity_matrix(self.similarity(alpha)), wanted_BB)
        pred = predictive(self.config, scores_BK, target)
        return {"sim": self.config.sim_share * sim, "pred": (1 - self.config.sim_share) * pred}
