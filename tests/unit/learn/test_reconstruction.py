"""The decoder term: how much of the block's input alpha still tells."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bllpipe.config.schema import Config, ObjectiveConfig
from bllpipe.errors import ConfigError
from bllpipe.learn.losses import ReconstructionLoss, make_objective
from bllpipe.messages import Round, Target

TARGET = Target(Round("train", 0, size=4), torch.zeros(4, 3), torch.zeros(4), torch.tensor([0, 1, 0, 1]))


def nothing(alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor) -> dict[str, Tensor]:
    return {"pred": torch.zeros(())}


def untold(decoder: float, alpha: Tensor, x: Tensor) -> float:
    keeping = ReconstructionLoss(nothing, (3, 8, 8), (3, 8, 8), weight=2.0)
    with torch.no_grad():
        keeping.decoder.weight.copy_(decoder * torch.eye(3).view(3, 3, 1, 1))
        nn.init.zeros_(keeping.decoder.bias)  # type: ignore[arg-type]  # it has one
    terms = keeping(alpha, torch.zeros(4, 2), TARGET, x)
    assert terms.keys() == {"pred", "keep"}
    return float(terms["keep"].detach())


def test_it_is_the_share_of_the_variance_that_is_not_told() -> None:
    x = torch.randn(4, 3, 8, 8)
    assert untold(1.0, x, x) == pytest.approx(0, abs=1e-6)
    assert untold(0.0, x, x) == pytest.approx(2 * float(x.square().mean() / x.var()))
    assert untold(1.0, x, 5 * x) == pytest.approx(2 * 0.64, rel=0.05)


def test_a_smaller_map_is_enlarged_to_the_input() -> None:
    keeping = ReconstructionLoss(nothing, (3, 8, 8), (6, 4, 4), weight=1.0)
    alpha = torch.randn(4, 6, 4, 4, requires_grad=True)
    keeping(alpha, torch.zeros(4, 2), TARGET, torch.randn(4, 3, 8, 8))["keep"].backward()
    assert alpha.grad is not None and alpha.grad.any()


@pytest.mark.parametrize("method", ["bll", "dgl", "predsim"])
def test_every_local_loss_can_have_it(method: str) -> None:
    config = replace(Config(), method=method, objective=ObjectiveConfig(keep_weight=0.1))  # type: ignore[arg-type]
    objective = make_objective(config, (3, 8, 8), (6, 4, 4), 2)
    target = replace(TARGET, beta_BC=torch.zeros(4, 6))
    terms = objective(torch.randn(4, 6, 4, 4), torch.randn(4, 2), target, torch.randn(4, 3, 8, 8))
    assert "keep" in terms and "pred" in terms


def test_vectors_have_nothing_to_enlarge() -> None:
    with pytest.raises(ConfigError, match=r"got a block from \[3, 8, 8\] to \[6\]; use --set objective.keep_weight=0"):
        ReconstructionLoss(nothing, (3, 8, 8), (6,), weight=1.0)
