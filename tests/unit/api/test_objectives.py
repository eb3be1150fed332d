"""Local losses of a script's own: what they may return, and that they are minimised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import bllpipe
from bllpipe import launch
from bllpipe.api.models import user_objective
from bllpipe.config import parse_config
from bllpipe.config.schema import Config, ObjectiveConfig, OptimizerConfig, ScheduleConfig
from bllpipe.learn.block import Block, make_block
from bllpipe.learn.user_loss import UserLoss
from bllpipe.messages import Round, Target
from bllpipe.models.units import Segment, units_from_modules
from tests.support.networks.api import DATA, Scaled, network, towards_class

PLAIN = OptimizerConfig(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)
TARGET = Target(Round("train", 0, size=4), torch.randn(4, 5), torch.ones(4), torch.tensor([0, 1, 2, 0]))


def block_with(objective: Any) -> Block:
    config = Config(
        method="own",
        optimizer=PLAIN,
        schedule=ScheduleConfig(name="constant"),
        objective=ObjectiveConfig(function="given:loss", user_loss=objective),
    )
    segment = Segment(units_from_modules({"0": nn.Linear(6, 5)}), seed=0)
    return make_block(segment, (6,), (5,), config, 3, total_steps=10, is_last=False)


def test_a_step_is_that_of_autograd() -> None:
    block, x = block_with(towards_class), torch.randn(4, 6)
    before = {name: value.detach().clone() for name, value in block.learner.parameters.items()}
    weight, bias = (before[f"model.0.{name}"].requires_grad_() for name in ("weight", "bias"))
    alpha = x @ weight.T + bias
    scores = alpha @ before["heads.0.1.weight"].T + before["heads.0.1.bias"]
    loss = (alpha - TARGET.beta_BC).square().sum(dim=1).mean() + cross_entropy(scores, TARGET.label_B)
    (gradient,) = torch.autograd.grad(loss, weight)
    outcome = block.update(block.forward(x), TARGET, step=0)
    torch.testing.assert_close(block.learner.parameters["model.0.weight"].detach(), weight.detach() - 0.1 * gradient)
    assert outcome.terms.keys() == {"near", "pred"}


def test_a_class_makes_one_for_every_block_with_parameters_of_its_own() -> None:
    block, twin = block_with(Scaled), block_with(Scaled)
    block.update(block.forward(torch.randn(4, 6)), TARGET, step=0)
    name = "objectives.0.terms.temperature"
    assert block.learner.parameters[name] != 1 and twin.learner.parameters[name] == 1


def returning(terms: object) -> Callable[..., Any]:
    return lambda alpha, scores, target, x: terms


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (returning(None), "objective.function=given:loss: expected a dict of scalar tensors .*, got a NoneType; use"),
        (returning({}), "objective.function=given:loss: expected .*, got an empty dict"),
        (
            returning({"pred": 0.5}),
            "objective.function=given:loss: expected a dict of scalar .*, got a float as term 'pred'",
        ),
        (returning({"a": torch.ones(4)}), r"term 'a': expected a scalar, got the shape \[4\]; use its .mean\(\)"),
        (returning({"a": torch.ones(())}), "term 'a' depends on no parameter of the block; .* without .detach()"),
    ],
)
def test_terms_that_cannot_be_minimised(objective: Any, message: str) -> None:
    block = block_with(objective)
    with pytest.raises(bllpipe.ConfigError, match=message):
        block.update(block.forward(torch.randn(4, 6)), TARGET, step=0)


def test_a_test_needs_no_gradient() -> None:
    own = UserLoss(returning({"a": torch.ones(())}), "given:loss")
    with torch.no_grad():
        assert own(TARGET.beta_BC, TARGET.beta_BC, TARGET, TARGET.beta_BC).keys() == {"a"}


@pytest.mark.parametrize(
    ("objective", "keys"),
    [
        ("dgl", {"method": "dgl"}),
        ("my_losses:f", {"method": "own", "objective.function": "my_losses:f"}),
        (towards_class, {"method": "own", "objective.function": "tests.support.networks.api:towards_class"}),
        (Scaled, {"method": "own", "objective.function": "tests.support.networks.api:Scaled"}),
    ],
)
def test_what_can_be_imported_goes_by_its_name(objective: Any, keys: dict[str, str]) -> None:
    assert user_objective(objective) == (keys, None)


@pytest.mark.parametrize("objective", [3, nn.MSELoss()])
def test_what_is_no_local_loss(objective: Any) -> None:
    message = f"the objective is a {type(objective).__name__}; expected a function .* a class of modules"
    with pytest.raises(bllpipe.ConfigError, match=message):
        user_objective(objective)


def test_a_class_is_trained_from_the_command_line_and_from_a_script(tmp_path: Path) -> None:
    words = ["engine=sequential", "steps=3", "blocks=2", "model.name=tests.support.networks.api:digit_network"]
    own = ["method=own", "objective.function=tests.support.networks.api:Scaled", "objective.keep_weight=0"]
    settings = [word for setting in (*words, *own) for word in ("--set", setting)]
    assert launch.main([*settings, "--run-dir", str(tmp_path / "a")]) == 0
    run = bllpipe.train(network, DATA, objective=Scaled, blocks=2, epochs=1, settings={"data.batch_size": 32})
    assert run.summary["method"] == bllpipe.Run(tmp_path / "a").summary["method"] == "own"


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"method": "own"},
            "method own expected a user-defined loss, got none; use --set objective.function=package.module:f",
        ),
        ({"objective": {"function": "a:b"}}, "objective.function is 'a:b', but method is bll; use --set method=own"),
        ({"method": "own", "objective": {"function": "b"}}, "is 'b'; expected package.module:function"),
    ],
)
def test_keys_that_belong_together(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(bllpipe.ConfigError, match=message):
        parse_config(mapping)


def test_a_loss_that_cannot_be_imported() -> None:
    with pytest.raises(bllpipe.ConfigError, match="objective.function=no_such:f cannot be imported: .*no_such"):
        make_block(
            Segment(units_from_modules({"0": nn.Linear(6, 5)}), seed=0),
            (6,),
            (5,),
            Config(method="own", objective=ObjectiveConfig(function="no_such:f")),
            3,
            total_steps=1,
            is_last=False,
        )


def test_the_watch_of_a_tensor_is_its_alignment() -> None:
    block = block_with(towards_class)
    watched = block.update(block.forward(torch.randn(4, 6)), TARGET, step=0).watch()
    assert watched.keys() == {"alignment", "gradient_norm"} and isinstance(watched["alignment"], Tensor)
