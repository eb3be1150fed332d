"""What a block draws at random depends on seed, block, step, shard and part alone; only blocks that draw are seeded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from bllpipe.learn.draws import NOT_SEEDED, Draws, Part
from bllpipe.utils.tensors import random_states_restored

CPU = torch.device("cpu")
PARTS: tuple[Part, Part] = ("forward", "loss")


@pytest.fixture(autouse=True)
def _random_numbers_of_the_other_tests() -> Iterator[None]:
    with random_states_restored():
        yield


def drawn(draws: Draws, part: Part, step: int, shard: int) -> Tensor:
    with draws.of(part, step, shard):
        return torch.rand(4)


def test_every_place_has_numbers_of_its_own() -> None:
    found = [
        drawn(Draws(seed, unit, CPU), part, step, shard)
        for seed, unit, part, step, shard in itertools.product((0, 1), ("a", "b"), PARTS, (0, 1), (0, 1))
    ]
    assert len({tuple(numbers.tolist()) for numbers in found}) == 32


@pytest.mark.parametrize("known", [None, True])
def test_the_numbers_do_not_depend_on_what_was_drawn_before(known: bool | None) -> None:
    whole, resumed = Draws(0, "a", CPU, known), Draws(0, "a", CPU)
    expected = [drawn(whole, part, step, 1) for step in range(3) for part in PARTS]
    torch.rand(3)
    found = [drawn(resumed, part, step, 1) for step in range(1, 3) for part in PARTS]
    assert torch.equal(torch.stack(found), torch.stack(expected[2:]))
    assert resumed.found


def test_a_loss_alone_that_draws_is_found() -> None:
    draws = Draws(0, "a", CPU)
    for step in range(2):
        with draws.of("forward", step, 0):
            pass
        torch.rand(step)
        assert torch.equal(drawn(draws, "loss", step, 0), drawn(Draws(0, "a", CPU), "loss", step, 0))


@pytest.mark.parametrize("draws", [Draws(0, "a", CPU), Draws(0, "a", CPU, found=False), NOT_SEEDED])
def test_a_block_that_draws_nothing_leaves_the_generators_as_they_were(draws: Draws) -> None:
    layer, before = nn.Linear(2, 2), torch.get_rng_state()
    for step, shard, part in itertools.product(range(2), range(2), PARTS):
        with draws.of(part, step, shard):
            layer(torch.ones(1, 2))
        assert torch.equal(torch.get_rng_state(), before)
    assert draws.found is False
