"""Local losses: what a block minimises, as named terms that add up to its loss.

An objective is a function (alpha, scores_BK, target) -> terms. To try another one, write such a function and add it
to ``OBJECTIVES``. Nothing in it may depend on another block: gradients end at the block's input.

Shapes: B images, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import cross_entropy

from bllpipe.config.schema import ObjectiveConfig
from bllpipe.learn.gaussian import channel_means, posterior_kl
from bllpipe.ports import Target

Objective = Callable[[Tensor, Tensor, Target], dict[str, Tensor]]


def block_local(config: ObjectiveConfig) -> Objective:
    """Block-local learning (paper, eq. 5 and 6): KL(rho || alpha) and a predictive loss for the entropy term.

    The KL alone is smallest for an output that is constant within a class, so the predictive loss of the local head
    (Nokland & Eidnes 2019, used in section 3 of the paper) is not optional; ``kl_weight`` 0 is the control that shows
    what the feedback adds.
    """

    def terms(alpha: Tensor, scores_BK: Tensor, target: Target) -> dict[str, Tensor]:
        kl = posterior_kl(channel_means(alpha), target.beta_BC, target.known_B)
        pred = cross_entropy(scores_BK.float(), target.label_B, label_smoothing=config.label_smoothing)
        return {"kl": config.kl_weight * kl, "pred": config.pred_weight * pred}

    return terms


def last_block(config: ObjectiveConfig) -> Objective:
    """-log p(y | x) of eq. 3: the last block's class scores against the labels, alone."""

    def terms(alpha: Tensor, scores_BK: Tensor, target: Target) -> dict[str, Tensor]:
        return {"pred": cross_entropy(scores_BK.float(), target.label_B, label_smoothing=config.label_smoothing)}

    return terms


OBJECTIVES: dict[str, Callable[[ObjectiveConfig], Objective]] = {"bll": block_local}
