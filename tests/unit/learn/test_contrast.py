"""The supervised contrastive loss of the head's embedding."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bllpipe.config.schema import ObjectiveConfig
from bllpipe.errors import ConfigError
from bllpipe.learn.losses import TEMPERATURE, ContrastLoss, supervised_contrast
from bllpipe.messages import Target
from tests.unit.learn.test_block import CONFIG, images, make, target
from tests.unit.learn.test_heads import heads_of


def by_hand(projected_BF: Tensor, label_B: Tensor) -> float:
    """Image by image, from the definition."""
    unit_BF, losses = normalize(projected_BF, dim=1), []
    for one in range(len(label_B)):
        others = [other for other in range(len(label_B)) if other != one]
        positives = [other for other in others if label_B[other] == label_B[one]]
        if positives:
            logits = {other: unit_BF[one] @ unit_BF[other] / TEMPERATURE for other in others}
            total = torch.stack(list(logits.values())).logsumexp(dim=0)
            losses.append(-sum(float(logits[other] - total) for other in positives) / len(positives))
    return sum(losses) / len(losses)


def test_it_is_the_mean_over_images_with_another_of_their_class() -> None:
    projected_BF, label_B = torch.randn(7, 5), torch.tensor([0, 1, 0, 2, 1, 0, 3])
    found = supervised_contrast(projected_BF, label_B)
    assert float(found) == pytest.approx(by_hand(projected_BF, label_B), rel=1e-5)


def test_a_batch_of_different_classes_gives_nothing() -> None:
    projected_BF = torch.randn(4, 5, requires_grad=True)
    loss = supervised_contrast(projected_BF, torch.arange(4))
    loss.backward()
    assert loss.eq(0) and projected_BF.grad is not None and not projected_BF.grad.any()


@pytest.mark.parametrize(
    "settings", [{"head": "linear"}, {"head": "mlp"}, {"head": "conv"}, {"keep_weight": 0.1}], ids=str
)
@pytest.mark.parametrize("method", ["bll", "dgl", "predsim"])
def test_every_local_loss_and_head_can_have_it(method: Any, settings: dict[str, Any]) -> None:
    objective = ObjectiveConfig(contrast_weight=0.5, head_hidden=12, head_features=64, **settings)
    block, aim = make(replace(CONFIG, method=method, objective=objective)), target(6, 8)
    alpha = block.forward(images())
    terms, scores_BK, _ = block.losses(alpha, aim)
    assert "contrast" in terms and scores_BK.shape == (6, 10)
    torch.testing.assert_close(scores_BK, block.head.eval()(alpha) if settings.get("head") != "conv" else scores_BK)
    before, weight = heads_of(block), next(block.segment.parameters())
    (gradient,) = torch.autograd.grad(terms["contrast"], [weight], retain_graph=True)
    assert gradient.any(), "it reaches the block"
    block.backward(terms)
    block.step_optimizer(0)
    projection = [name for name in block.learner.parameters if ".projection." in name]
    assert len(projection) == 4 and all(name.startswith("objectives.layer1.1.") for name in projection)
    assert before.keys() == heads_of(block).keys()


def test_embeddings_of_a_class_become_similar() -> None:
    block, aim = make(replace(CONFIG, method="dgl", objective=ObjectiveConfig(contrast_weight=1.0))), target(6, 8)
    aim = replace(aim, label_B=torch.tensor([0, 1, 0, 1, 2, 2]))
    losses = [float(block.update(block.forward(images()), aim, step).terms["contrast"]) for step in range(12)]
    assert losses[-1] < losses[0] / 2


def test_a_loss_of_ones_own_has_no_term_of_this_name() -> None:
    def own(alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor) -> dict[str, Tensor]:
        return {"contrast": scores_BK.sum()}

    with pytest.raises(ConfigError, match=r"is called 'contrast', .* or --set objective\.contrast_weight=0"):
        ContrastLoss(own, 4, 1.0)(
            torch.zeros(6, 4), torch.zeros(6, 10), target(6, 4), torch.zeros(6, 3), None, torch.ones(6, 4)
        )
