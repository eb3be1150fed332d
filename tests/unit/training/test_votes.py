"""With ``evaluate.ensemble`` the class probabilities of all heads travel along with alpha, in tests and only there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bllpipe.config import Config
from bllpipe.config.running import EvaluateConfig
from bllpipe.learn.block import Block, Outcome, make_block
from bllpipe.messages import Alpha, Round, Target
from bllpipe.models.partition import cut
from bllpipe.models.resnet import resnet_units
from bllpipe.models.units import Segment
from bllpipe.training.loops import BlockLoop
from tests.unit.training.test_loops import CHANNELS, CLASSES, SIZE, Given, Kept, block_loop, images, train


def ensemble(which: int, events: list[str]) -> Block:
    """Block ``which`` of two, with ``evaluate.ensemble``."""
    config, shapes = Config(evaluate=EvaluateConfig(ensemble=True)), [(1, 8, 8), (2 * CHANNELS, 4, 4), (CLASSES,)]
    segment = Segment(cut(resnet_units("resnet18", CHANNELS, "cifar", 1, CLASSES), 2)[which], seed=0)
    return make_block(segment, shapes[which], shapes[which + 1], config, CLASSES, total_steps=10, is_last=which == 1)


def voted(which: int, received: Alpha, label_B: Tensor) -> tuple[Block, Outcome, Any]:
    """A block of an ensemble, what it made of a test batch, and what it sent."""
    made, entry, events = ensemble(which, []), received.round, list[str]()
    inputs, alphas = Given("alpha", [received], events), Kept("alpha", events)
    aim = Target(entry, torch.zeros(SIZE, [2 * CHANNELS, CLASSES][which]), torch.zeros(SIZE), label_B)
    loop = BlockLoop(made, inputs, Given("target", [aim], events), alphas, Kept("stats", events))
    outcome = loop.run(entry)
    assert events == ["recv alpha", "send alpha", "recv target"] and outcome is not None
    return made, outcome, alphas.messages[0]


def test_in_an_ensemble_every_block_adds_its_own_probabilities_and_the_last_one_counts() -> None:
    entry, label_B = Round("evaluate", 3, size=SIZE), torch.tensor([1, 2, 1, 0])
    first, outcome, sent = voted(0, Alpha(entry, images(0)), label_B)
    own_BK = first.head(first.infer(images(0))).softmax(dim=1).detach()
    assert torch.equal(sent.votes_BK, own_BK) and sent.votes_BK.dtype == torch.float32
    assert outcome.ensemble_correct is None
    for_label = torch.eye(CLASSES)[label_B]  # as sure as a head can be
    _, outcome, sent = voted(1, Alpha(entry, sent.alpha_BCHW, for_label), label_B)
    torch.testing.assert_close(sent.votes_BK.sum(dim=1), torch.full((SIZE,), 2.0))
    assert torch.equal(sent.votes_BK, for_label + sent.alpha_BCHW.softmax(dim=1))
    assert outcome.ensemble_correct is not None
    assert (int(outcome.ensemble_correct), int(outcome.correct) < SIZE) == (SIZE, True), (
        "its own head is not asked alone"
    )


def test_without_an_ensemble_and_in_training_no_votes_travel() -> None:
    entry = Round("evaluate", 0, size=SIZE)
    loop = block_loop([entry], [])
    loop.run(entry)
    assert loop.alphas.messages[0].votes_BK is None  # type: ignore[attr-defined]  # a list in this test
    loop = block_loop([train(0)], [])
    loop.block = ensemble(0, [])
    loop.targets = Given("target", [Target(train(0), torch.ones(SIZE, 16), torch.ones(SIZE), torch.arange(SIZE))], [])
    loop.run(train(0))
    assert loop.alphas.messages[0].votes_BK is None  # type: ignore[attr-defined]  # a list in this test
