"""A local loss for the question of eight and sixteen blocks: a head also learns from what the one before predicts.

    CE(scores_k, y) + WEIGHT * KL(p_{k-1} || p_k),      p_k = softmax(scores_k)

A pipeline would send p_{k-1} with alpha, 4 bytes a class and image, and the extra operations are those of two
softmaxes. To find out whether that is worth it, the blocks of ``engine=sequential`` leave their predictions in this
process for the next one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from bllpipe.distributed.torchrun import RankEnvironment
from bllpipe.errors import ConfigError
from bllpipe.messages import Target

WEIGHT = 0.5


class BeliefPassing(nn.Module):
    """The loss of one block; blocks of one process are numbered as they are made."""

    latest: tuple[int, Tensor, Tensor] | None = None  # of the block before: its number, labels and log-probabilities
    made = 0

    def __init__(self, config: object, alpha_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        if RankEnvironment.read() is not None:  # every process would have one block, and take it for the first
            raise ConfigError(
                "BeliefPassing: expected all blocks in one process, got ranks; use --set engine=sequential"
            )
        self.number, self.is_first, self.has_run = BeliefPassing.made, False, False
        BeliefPassing.made += 1

    def forward(self, alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor) -> dict[str, Tensor]:
        label_B = target.label_B
        belief_BK = scores_BK.float().log_softmax(dim=1)
        terms = {"pred": cross_entropy(scores_BK.float(), label_B)}
        before = BeliefPassing.latest
        BeliefPassing.latest = self.number, label_B.clone(), belief_BK.detach()
        if before is None or (before[0] >= self.number and not self.has_run):
            self.is_first = True
        self.has_run = True
        if before is None or self.is_first:
            return terms
        number, labels_B, before_BK = before
        if number != self.number - 1 or not torch.equal(labels_B, label_B):
            raise ValueError(
                f"block {self.number} after block {number}: expected the block before with the same batch; use --set "
                f"engine=sequential, and one run in a process"
            )
        return {**terms, "belief": WEIGHT * kl_div(belief_BK, before_BK, reduction="batchmean", log_target=True)}
