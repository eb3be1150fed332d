"""What beta is about, and how much its KL weighs, from block to block and over the run."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bllpipe.config import load_config
from bllpipe.config.schema import Config, ObjectiveConfig
from bllpipe.errors import ConfigError
from bllpipe.learn.block import Block, make_block
from bllpipe.learn.distributions import Gaussian, cell_means, channel_means
from bllpipe.learn.heads import classify, embed, make_head, message_size
from bllpipe.learn.losses import LossContext, kl_weight, posterior_kl
from bllpipe.models.partition import cut
from bllpipe.models.resnet import resnet_units
from bllpipe.models.units import Segment
from tests.unit.learn.test_block import CONFIG, images, make, target
from tests.unit.learn.test_heads import heads_of

WIDTHS = {"means": 8, "cells": 32, "embedding": 64}  # of the first block of eight channels, with a strided head


def strided(which: int = 0, total_steps: int = 100, config: Config = CONFIG, **objective: Any) -> Block:
    """One of four blocks with a strided head."""
    config = replace(config, objective=ObjectiveConfig(head="strided", **objective))
    segment = Segment(cut(resnet_units("resnet18", 8, "cifar", 1, 10), 4)[which], seed=0)
    shapes = [(1, 8, 8), (8, 8, 8), (16, 4, 4), (32, 2, 2), (10,)]
    return make_block(
        segment,
        shapes[which],
        shapes[which + 1],
        config,
        10,
        total_steps,
        is_last=which == 3,
        last_width=64,
        number=which,
    )


@pytest.mark.parametrize(
    ("shape", "size"), [((3, 4, 4), 12), ((3, 5, 7), 12), ((3, 1, 4), 6), ((3, 1, 1), 3), ((5, 3), 3), ((7,), 7)]
)
def test_cells_halve_rows_and_columns(shape: tuple[int, ...], size: int) -> None:
    alpha = torch.randn(2, *shape)
    found = cell_means(alpha)
    assert found.shape == (2, size) == (2, message_size(ObjectiveConfig(message="cells"), shape, torch.nn.Identity()))
    if shape == (3, 4, 4):
        torch.testing.assert_close(found.view(2, 4, 3)[:, 1], alpha[:, :, :2, 2:].mean(dim=(2, 3)))
    if len(shape) < 3:
        torch.testing.assert_close(found, channel_means(alpha))


@pytest.mark.parametrize("head", ["linear", "mlp", "conv", "narrow", "gap", "strided"])
def test_an_embedding_is_what_the_last_layer_reads(head: Any) -> None:
    config = ObjectiveConfig(head=head, head_features=64, head_hidden=12, message="embedding")
    made, alpha = make_head((8, 8, 8), 10, config, 64), torch.randn(4, 8, 8, 8)
    made.eval()
    embedding_BF = embed(made, alpha)
    assert embedding_BF.shape == (4, message_size(config, (8, 8, 8), made))
    assert torch.equal(classify(made, embedding_BF), made(alpha))


def test_a_head_without_a_linear_layer_at_its_end_has_no_embedding() -> None:
    with pytest.raises(ConfigError, match="ends with a linear layer, got a ReLU at the end of linear; use an nn.Seq"):
        message_size(ObjectiveConfig(message="embedding"), (8, 8, 8), torch.nn.Sequential(torch.nn.ReLU()))


def message_of(block: Block, alpha: Tensor) -> Tensor:
    """By another way than the block's own, in evaluation mode so that nothing changes."""
    message = block.config.objective.message
    if message == "embedding":
        return embed(block.head, alpha)
    cells_BC22: Tensor = alpha.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean(dim=(3, 5))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return cells_BC22.permute(0, 2, 3, 1).flatten(1)


@pytest.mark.parametrize("message", ["cells", "embedding"])
def test_kl_and_statistics_are_about_the_message(message: Any) -> None:
    block, aim = strided(message=message), target(6, WIDTHS[message])
    assert block.message_size == WIDTHS[message]
    alpha = block.infer(images())
    outcome = block.outcome(block.score(alpha, block.scores(alpha), aim))
    expected = message_of(block, alpha)
    torch.testing.assert_close(
        outcome.terms["kl"], posterior_kl(Gaussian(), expected, aim.beta_BC, aim.known_B), rtol=1e-5, atol=1e-6
    )
    assert outcome.watch().keys() == {"alignment"}
    sums_KC, counts_K = block.stats(alpha, aim.label_B)
    torch.testing.assert_close(sums_KC[aim.label_B[0]], expected[aim.label_B == aim.label_B[0]].sum(dim=0))
    assert counts_K.sum() == 6 and not sums_KC.requires_grad


@pytest.mark.parametrize("message", ["cells", "embedding"])
def test_a_step_has_the_gradients_of_its_sum(message: Any) -> None:
    """With statistics before it, as in a run, and without, the same; and with the KL other ones than without."""
    gradients = []
    for weight, with_statistics in ((1.0, True), (1.0, False), (0.0, True)):
        block, aim = strided(message=message, kl_weight=weight), target(6, WIDTHS[message])
        alpha = block.forward(images())
        if with_statistics:
            block.stats(alpha, aim.label_B)
        block.backward(block.losses(alpha, aim)[0])
        assert block.update(block.forward(images()), aim, step=0).watch()["alignment"].isfinite()
        gradients.append([p.grad for p in block.segment.parameters()])
        batches = [
            int(value) for name, value in block.head.state_dict().items() if name.endswith("num_batches_tracked")
        ]
        assert set(batches) == {2}, "once a step, although it is read twice"
    (once, again, without) = gradients
    for one, other in zip(once, again, strict=True):
        torch.testing.assert_close(one, other)
    assert not all(torch.allclose(one, other) for one, other in zip(once, without, strict=True))  # type: ignore[arg-type]


def test_the_last_block_compares_class_scores() -> None:
    for message in ("cells", "embedding"):
        block, aim = strided(3, message=message), target(6, 10)
        assert block.message_size == 10
        alpha = block.forward(torch.randn(6, 32, 2, 2))
        assert block.stats(alpha, aim.label_B)[0].shape == (10, 10)
        assert block.update(alpha, aim, step=0).terms.keys() == {"pred"}


def test_variances_are_learned_for_every_number_of_a_message() -> None:
    block, aim = strided(message="cells", family="gaussian_learned"), target(6, 32)
    alpha = block.forward(images())
    block.stats(alpha, aim.label_B)
    block.update(alpha, aim, step=0)
    (variance_C,) = (value for name, value in block.learner.weights().items() if name.endswith("variance_C"))
    assert variance_C.shape == (32,) and bool((variance_C != 1).all())


@pytest.mark.parametrize(
    ("settings", "weight"),
    [
        ({}, 0.5),
        ({"kl_scale": "channels"}, 0.5 / 16),
        ({"kl_scale": "classes"}, 0.5 / 100),
        ({"kl_scale": "both"}, 0.5 / 1600),
        ({"kl_block_factor": 0.5}, 0.5 / 4),
        ({"kl_block_factor": 0.0}, 0.0),
        ({"kl_final_fraction": 0.0}, 0.5),
    ],
    ids=str,
)
def test_the_weight_follows_channels_classes_and_blocks(settings: dict[str, Any], weight: float) -> None:
    config = ObjectiveConfig(kl_weight=0.5, **settings)
    assert kl_weight(config, LossContext(16, number=2), num_classes=100) == pytest.approx(weight)


def test_a_weight_that_no_number_can_hold_is_refused() -> None:
    for number, objective in (
        (3, ObjectiveConfig(kl_block_factor=1e200)),
        (1, ObjectiveConfig(kl_weight=1e200, kl_block_factor=1e200)),
    ):
        with pytest.raises(ConfigError, match=f"whose power in block {number} times .* is no finite number"):
            kl_weight(objective, LossContext(16, number=number), num_classes=10)


def test_a_block_knows_which_one_it_is() -> None:
    terms = []
    for factor in (1.0, 0.25):
        block, aim = strided(2, kl_block_factor=factor), target(6, 32)
        alpha = block.forward(torch.randn(6, 16, 4, 4, generator=torch.Generator().manual_seed(0)))
        terms.append(float(block.losses(alpha, aim)[0]["kl"].detach()))
    assert terms[1] == pytest.approx(terms[0] / 16)


def test_the_weight_goes_to_its_end_over_the_run_and_a_checkpoint_holds_how_far() -> None:
    block, aim = strided(total_steps=4, kl_final_fraction=0.5), target(6, 8)
    plain = strided()
    shares = []
    for step in range(6):
        alpha = block.forward(images())
        found = block.losses(alpha, aim)[0]["kl"]
        full = posterior_kl(Gaussian(), channel_means(alpha), aim.beta_BC, aim.known_B)
        shares.append(float((found / full).detach()))
        if step == 2:
            tested = block.infer(images())
            block.score(tested, block.scores(tested), aim)  # a test is no step
    assert shares == pytest.approx([1.0, 0.875, 0.75, 0.625, 0.5, 0.5])
    (name,) = block.learner.weights().keys() - plain.learner.weights().keys()
    assert name == "objectives.layer1.1.weight.steps" and int(block.learner.weights()[name]) == 6
    other = strided(total_steps=4, kl_final_fraction=0.5)
    other.learner.load(block.learner.state())
    assert int(other.learner.weights()[name]) == 6


def test_by_default_nothing_is_new() -> None:
    assert (
        make().learner.state().keys()
        == make(replace(CONFIG, objective=ObjectiveConfig(kl_block_factor=0.5))).learner.state().keys()
    )
    assert not any("steps" in name or "projection" in name for name in make().learner.state())
    assert heads_of(make()).keys() == {"heads.layer1.1.2.weight", "heads.layer1.1.2.bias"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method=dgl", "objective.message=cells"], r"objective\.message is cells, but method dgl .* --set method=bll"),
        (
            ["model.name=my.module:network", "objective.head=auglocal"],
            r"objective\.head is auglocal, .* resnet18.*; use --set objective\.head=strided",
        ),
    ],
)
def test_what_cannot_be_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, settings)
