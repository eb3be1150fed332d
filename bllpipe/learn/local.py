"""What a local loss is, and the one term that all have: the predictive loss.

Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeGuard

from torch import Tensor
from torch.nn.functional import cross_entropy

from bllpipe.config.schema import ObjectiveConfig
from bllpipe.ports import Target

# (alpha, scores_BK, target, x) -> named terms that add up to the loss of the block; x is what the block was given.
Objective = Callable[[Tensor, Tensor, Target, Tensor], dict[str, Tensor]]


class TakesMeans(Protocol):
    """An objective that may also be given the channel means [B, C] of alpha, without their way back, if these are known
    already."""

    def __call__(
        self, alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor, means_BC: Tensor | None = None
    ) -> dict[str, Tensor]: ...


def takes_means(objective: Objective) -> TypeGuard[TakesMeans]:
    """Whether ``objective`` uses means that it is given."""
    return bool(getattr(objective, "takes_means", False))


def predictive(config: ObjectiveConfig, scores_BK: Tensor, target: Target) -> Tensor:
    """Cross-entropy of a head's class scores (Nokland & Eidnes 2019), nats, mean over the batch."""
    return cross_entropy(scores_BK.float(), target.label_B, label_smoothing=config.label_smoothing)
