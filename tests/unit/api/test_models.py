"""Networks of a script's own: what can be cut, and what is refused with words."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bllpipe
from bllpipe.api.models import UserModules, user_model
from bllpipe.config.schema import ModelConfig
from bllpipe.models.registry import network_units
from tests.support.networks.api import network, seeded_network


class Forked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        forked: Tensor = self.one(x) + self.other(x)
        return forked


class Skipping(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        skipping: Tensor = x + self[0](x)
        return skipping


def test_blocks_share_the_modules_and_keep_their_names() -> None:
    model = nn.Sequential(OrderedDict(stem=nn.Linear(3, 4), middle=nn.ReLU(), head=nn.Linear(4, 2)))
    first, second = bllpipe.cut(model, ["middle"])
    assert first.stem is model.stem and list(second.state_dict()) == ["head.weight", "head.bias"]
    x = torch.randn(5, 3)
    assert torch.equal(second(first(x)), model(x))
    assert [len(block) for block in bllpipe.cut(list(model), 2)] == [2, 1]
    assert [len(block) for block in bllpipe.cut(nn.ModuleList(model), [1])] == [1, 2]


def test_units_have_the_names_of_the_state_dict() -> None:
    model = nn.Sequential(OrderedDict(stem=nn.Linear(3, 4), head=nn.Linear(4, 2)))
    name, given = user_model(model)
    units = network_units(ModelConfig(name=name, user_model=given), (3,), 2, seed=0)
    assert name == "given:network" and [unit.name for unit in units] == ["stem", "head"]
    assert units[0].layers[0].make() is model.stem


def test_a_function_that_others_can_import_goes_by_its_name() -> None:
    assert user_model(network) == ("tests.support.networks.api:network", None)

    def inside(in_channels: int, num_classes: int) -> list[nn.Module]:
        return network(in_channels, num_classes)

    assert user_model(inside) == ("given:inside", inside)
    assert user_model(lambda **sizes: network())[0] == "given:_lambda_"
    assert user_model("resnet50") == ("resnet50", None)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(), "the model is an empty nn.Sequential; expected at least one module for every block"),
        ([nn.Linear(3, 3), 3], "the model is Linear, int; expected a list of torch.nn.Module"),
        (3, "the model is a int; expected an nn.Module, a list of modules, a function"),
        (nn.Sequential(nn.LazyLinear(3)), "module 0 of the model: expected parameters with a shape, got a lazy layer"),
    ],
)
def test_what_cannot_be_cut(model: Any, message: str) -> None:
    with pytest.raises(bllpipe.ConfigError, match=message):
        user_model(model)


def test_a_parameter_in_two_modules() -> None:
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = one.weight
    with pytest.raises(bllpipe.ConfigError, match="modules 0 and 2 with the same parameter weight; use one nn.Seq"):
        bllpipe.cut([one, nn.ReLU(), other], 2)
    assert len(bllpipe.cut([nn.Sequential(one, nn.ReLU(), other), nn.Linear(3, 3)], 2)) == 2


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("balanced 2", "blocks is 'balanced 2'; cut takes a number or a list, and bllpipe.make_plan finds even cuts"),
        (4, "blocks=4, but the network has only 3 units"),
        ([3], "cannot cut after 3; expected a number from 1 to 2 or one of 0, 1"),
    ],
)
def test_impossible_cuts(blocks: Any, message: str) -> None:
    with pytest.raises(bllpipe.ConfigError, match=message):
        bllpipe.cut(network(), blocks)


def test_arguments_for_what_is_built_already() -> None:
    given = UserModules({"0": nn.Linear(3, 3)})
    with pytest.raises(bllpipe.ConfigError, match=r"model.args are for a function .* \['hidden'\] would change"):
        given(in_channels=3, num_classes=3, hidden=5)


def test_weights_that_were_drawn_alike_have_one_digest() -> None:
    same, other = (user_model(seeded_network())[1] for _ in range(2)), user_model(nn.Sequential(*network()))[1]
    digests = {given.digest() for given in same if isinstance(given, UserModules)}
    assert len(digests) == 1 and isinstance(other, UserModules) and other.digest() not in digests


def test_what_another_process_cannot_have() -> None:
    model = ModelConfig(name="given:network")
    message = "model.name=given:network is an object that a script passed, and exists in that script only; run the"
    with pytest.raises(bllpipe.ConfigError, match=message):
        network_units(model, (3,), 2, seed=0)
    assert "given" not in sys.modules
