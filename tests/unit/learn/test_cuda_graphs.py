"""A captured step does what an ordinary one does, on a tape that stands in for CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bllpipe.config import Config, load_config
from bllpipe.learn import cuda_graphs
from bllpipe.learn.block import Block, Outcome, make_block
from bllpipe.learn.cuda_graphs import CapturedStep
from bllpipe.messages import Round, Target
from bllpipe.models.partition import cut
from bllpipe.models.resnet import resnet_units
from bllpipe.models.units import Segment
from tests.support.tape import TapeGraphs

SIZE, CHANNELS, CLASSES, STEPS = 6, 8, 10, 9

SETTINGS = [
    (),
    ("optimizer.name=adamw", "optimizer.clip_norm=0.5"),
    ("method=predsim", "objective.label_smoothing=0.1"),
    ("objective.family=gaussian_learned", "objective.head=conv", "objective.normalize=batch"),
    ("precision.compute=bf16", "objective.keep_weight=0.1"),
    ("objective.message=embedding", "objective.head=gap", "objective.kl_final_fraction=0"),
]


def make(config: Config) -> Block:
    segment = Segment(cut(resnet_units("resnet18", CHANNELS, "cifar", 1, CLASSES), 4)[0], seed=0)
    block = make_block(segment, (1, 8, 8), (CHANNELS, 8, 8), config, CLASSES, total_steps=STEPS, is_last=False)
    block.learner.optimizer.keep_rate_on_device()  # as a GPU does
    return block


def images(step: int, size: int = SIZE) -> Tensor:
    return torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(step))


def target(step: int, size: int = SIZE) -> Target:
    generator = torch.Generator().manual_seed(100 + step)
    label_B = torch.randint(0, CLASSES, (size,), generator=generator)
    beta_BC = torch.randn(size, CHANNELS, generator=generator)
    return Target(Round("train", step, size=size), beta_BC, (label_B > 0).float(), label_B)


def in_slots(step: int, slots: list[Tensor]) -> Tensor:
    """The images of a step in the next of some slots."""
    return slots[step % len(slots)].copy_(images(step))


def step_of(block: Block, x: Tensor, step: int) -> tuple[Outcome, tuple[Tensor, Tensor]]:
    """A training step as the loop makes it; what is sent leaves at once."""
    aim = target(step)
    alpha = block.forward(x)
    stats = block.stats(alpha, aim.label_B)
    sent = stats[0].clone(), stats[1].clone()
    return block.update(alpha, aim, step), sent


def run(block: Block, inputs: Callable[[int], Tensor]) -> list[Any]:
    """What the steps tell, with a test of another size in between."""
    told: list[Any] = []
    for step in range(STEPS):
        outcome, sent = step_of(block, inputs(step), step)
        told += [value.clone() for value in outcome.terms.values()]
        watched = [value for name, value in outcome.watch().items() if name != "gradient_norm"]  # graphs do not tell it
        told += [outcome.correct.clone(), torch.tensor(outcome.lr), *sent, *watched]
        if step == 5:
            alpha = block.infer(images(50, 3))
            tested = block.outcome(block.score(alpha, block.scores(alpha), target(50, 3)))
            told += [*tested.terms.values(), tested.correct]
    return told


@pytest.mark.parametrize("num_slots", [1, 2, STEPS])
@pytest.mark.parametrize("settings", SETTINGS, ids=" ".join)
def test_it_gives_the_same_bits(settings: tuple[str, ...], num_slots: int) -> None:
    config, ordinary_slots = load_config(None, list(settings)), [images(0) for _ in range(num_slots)]
    ordinary, captured, graphs = make(config), make(config), TapeGraphs()
    CapturedStep(captured, graphs)
    slots = [images(0) for _ in range(num_slots)]
    expected = run(ordinary, lambda step: in_slots(step, ordinary_slots))
    found = run(captured, lambda step: in_slots(step, slots))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    state, other = ordinary.learner.state(), captured.learner.state()
    assert [name for name in state if not torch.equal(state[name], other[name])] == []
    assert len(graphs.tapes) == 5 * min(num_slots, 2), "five pieces a place, and no more than two places"


def test_without_a_rate_on_the_device_the_first_one_would_stay() -> None:
    """What the tape is for: it shows what a graph would forget."""
    config = replace(Config(), optimizer=replace(Config().optimizer, nesterov=False))
    ordinary, captured = make(config), make(config)
    captured.learner.optimizer.rate = 0.0
    CapturedStep(captured, TapeGraphs())
    slot = images(0)
    for block in (ordinary, captured):
        run(block, lambda step: in_slots(step, [slot]))
    state, other = ordinary.learner.state(), captured.learner.state()
    assert [name for name in state if not torch.equal(state[name], other[name])] != []


def test_a_step_that_asks_the_device_is_not_captured() -> None:
    block = make(Config())
    CapturedStep(block, TapeGraphs())
    objective: Any = block.objective
    del block.local.objective  # a module makes way for nothing but another one
    block.local.objective = lambda *given: {"kl": objective(*given)["kl"] * float(given[0].detach().mean())}
    for step in range(cuda_graphs.WARMUP_STEPS):
        step_of(block, images(0), step)
    with pytest.raises(AssertionError, match="_local_scalar_dense cannot be captured"):
        step_of(block, images(0), cuda_graphs.WARMUP_STEPS)


def test_the_rate_on_the_device_is_that_of_the_schedule() -> None:
    block = make(Config())
    rates = []
    for step in range(3):
        lr = block.learner.set_rate(step)
        assert isinstance(block.learner.optimizer.rate, Tensor)
        rates.append((lr, block.learner.optimizer.rate.item()))
    assert all(found == pytest.approx(lr, rel=1e-6) for lr, found in rates)
    assert len({lr for lr, _ in rates}) == 3


class Forgetful:
    """Records nothing: a tape would keep every tensor, and with it what made it."""

    def record(self, compute: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        return (lambda: None), compute()


def test_no_way_back_stays_behind_a_recorded_step() -> None:
    """Leaves that are kept belong to the stream of the recording, and would draw it into any later one."""
    block = make(Config())
    CapturedStep(block, Forgetful())
    for step in range(cuda_graphs.WARMUP_STEPS):
        step_of(block, images(0), step)
    alpha = block.forward(images(0))
    mark_leaf(block)
    assert "seen" in leaf_of(block).metadata, "while there is a way back its leaves are there too"
    block.update(alpha, target(0), cuda_graphs.WARMUP_STEPS)
    del alpha
    assert "seen" not in leaf_of(block).metadata


def leaf_of(block: Block) -> Any:
    """Where the gradient of the first parameter ends."""
    weight = next(iter(block.learner.parameters.values()))
    way_back: Any = weight.view_as(weight).grad_fn
    return way_back.next_functions[0][0]


def mark_leaf(block: Block) -> None:
    leaf_of(block).metadata["seen"] = True
