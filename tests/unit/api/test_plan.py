"""Plans of a script's own network: measured here, and the network stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bllpipe
from tests.support.networks.api import DATA, network, seeded_network
from tests.unit.api.test_train import Two

SMALL = {"data.batch_size": 32}


def test_a_plan_is_a_cut_that_train_takes() -> None:
    model, threads = seeded_network(), torch.get_num_threads()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plan = bllpipe.make_plan(model, DATA, 2, settings=SMALL, repetitions=2)
    assert plan.cut in (["0"], ["1"]) and [*plan.seconds] == ["0", "1", "2"]
    assert min(plan.seconds.values()) > 0
    assert "best cut into 2 at 10 GB/s" in str(plan) and "given:network, batches of 32" in str(plan)
    assert model.state_dict().keys() == before.keys() and torch.get_num_threads() == threads
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert len(bllpipe.cut(model, plan.cut)) == 2
    assert bllpipe.make_plan(model, DATA, 1, settings=SMALL, repetitions=2).cut == []


@pytest.mark.parametrize(
    ("model", "blocks", "message"),
    [
        (network(), 4, "blocks=4, but the network has only 3 units"),
        ([*network(), nn.Identity()], 4, "4 blocks would leave one without parameters; use fewer"),
        ([nn.Linear(6, 8), Two(8, 8), nn.Linear(8, 3)], 2, "unit 1: expected one tensor as its output, .*got a tuple"),
    ],
)
def test_what_cannot_be_planned(model: Any, blocks: int, message: str) -> None:
    with pytest.raises(bllpipe.ConfigError, match=message):
        bllpipe.make_plan(model, DATA, blocks, settings=SMALL, repetitions=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule.name": "cosine", "schedule.warmup_steps": 10_000}, "warmup_steps is 10000, but the run has only"),
        ({"data.batch_size": 10_000}, "data.batch_size is 10000, but given has only"),
    ],
)
def test_what_is_too_long_for_the_data(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(bllpipe.ConfigError, match=message):
        bllpipe.make_plan(network(), DATA, 2, settings=settings, repetitions=2)


def test_a_single_repetition_has_no_spread() -> None:
    with pytest.raises(bllpipe.ConfigError, match="repetitions is 1; expected at least 2"):
        bllpipe.make_plan(network(), DATA, 2, repetitions=1)
