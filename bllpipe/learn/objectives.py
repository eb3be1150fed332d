"""Local losses: what a block minimises, as named terms that add up to its loss.

An objective is a function (alpha, scores_BK, target, x) -> terms, or an nn.Module of that form if it has parameters
of its own. To try another one, write such a function and name it as ``objective.function``. Nothing in it may depend on
another block: gradients end at the block's input x.

Shapes: B images, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from bllpipe.config.schema import Config, ObjectiveConfig
from bllpipe.learn.block_local import BlockLocal
from bllpipe.learn.keeping import Keeping
from bllpipe.learn.local import Objective, predictive
from bllpipe.learn.own import own_objective
from bllpipe.learn.similarity import PredSim
from bllpipe.ports import Target


def greedy(config: ObjectiveConfig, alpha_shape: Sequence[int], num_classes: int) -> Objective:
    """Decoupled greedy learning (Belilovsky et al. 2020): the local head's cross-entropy, and no feedback."""

    def terms(alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor) -> dict[str, Tensor]:
        return {"pred": config.pred_weight * predictive(config, scores_BK, target)}

    return terms


def last_block(config: ObjectiveConfig) -> Objective:
    """-log p(y | x) of eq. 3: the last block's class scores against the labels, alone."""

    def terms(alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor) -> dict[str, Tensor]:
        return {"pred": predictive(config, scores_BK, target)}

    return terms


OBJECTIVES: dict[str, Callable[[ObjectiveConfig, Sequence[int], int], Objective]] = {
    "bll": BlockLocal,
    "dgl": greedy,
    "predsim": PredSim,
    "own": own_objective,
}


def make_objective(
    config: Config, input_shape: Sequence[int], alpha_shape: Sequence[int], num_classes: int
) -> Objective:
    """The local loss of ``config.method`` for a block that makes ``alpha_shape`` of ``input_shape``."""
    objective = OBJECTIVES[config.method](config.objective, alpha_shape, num_classes)
    if not config.objective.keep_weight:
        return objective
    return Keeping(objective, input_shape, alpha_shape, config.objective.keep_weight)
