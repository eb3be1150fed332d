"""The parts of a block's step beside its segment, each a module of its own: what ``torch.compile`` takes as one region.

The statistics leave before the loss, which needs the target; so there are two, and the second one is given the channel
means that the first one has computed. Neither has parameters of its own: names are those of head and objective.

Shapes: B images, C channels, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from bllpipe.config.schema import ObjectiveConfig
from bllpipe.learn.channels import NORMALIZATIONS, channel_means, class_statistics
from bllpipe.learn.families import FAMILIES
from bllpipe.learn.local import Objective, takes_means
from bllpipe.ports import Target


class Statistics(nn.Module):
    """What a block tells its lane about a batch: class sums [K, C] and counts [K] of what alpha expects."""

    def __init__(self, config: ObjectiveConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes

    def forward(self, alpha: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sums, the counts, and the channel means [B, C] that they were made of."""
        means_BC = channel_means(alpha.detach())
        message_BC = NORMALIZATIONS[self.config.normalize](means_BC)
        statistic_BC = FAMILIES[self.config.family].statistic(message_BC)
        return (*class_statistics(statistic_BC, label_B, self.num_classes), means_BC)


class LocalLoss(nn.Module):
    """Head and objective, from alpha to the terms of the loss and the hits."""

    def __init__(self, head: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.head, self.objective = head, objective

    def forward(
        self, alpha: Tensor, target: Target, x: Tensor, means_BC: Tensor | None, scores_BK: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The terms, the head's scores [B, K], and how many images it got right. ``means_BC`` of alpha, and the
        scores, are computed unless they are given."""
        if scores_BK is None:
            scores_BK = self.head(alpha)
        if means_BC is not None and takes_means(self.objective):
            terms = self.objective(alpha, scores_BK, target, x, means_BC)
        else:
            terms = self.objective(alpha, scores_BK, target, x)
        hits = (scores_BK.detach().argmax(dim=1) == target.label_B).sum()
        return terms, scores_BK, hits
