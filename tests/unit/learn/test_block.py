"""A block on its own: its loss, its step, its state, and the shapes its head reads."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from bllpipe.config.running import PrecisionConfig
from bllpipe.config.schema import Config, ObjectiveConfig, OptimizerConfig, ScheduleConfig
from bllpipe.errors import CheckpointError, ConfigError
from bllpipe.learn.block import Block, alpha_shape, build_segments, make_block
from bllpipe.learn.distributions import NORMALIZATIONS, Gaussian, channel_means
from bllpipe.learn.heads import HEADS, make_head, pooled_shape
from bllpipe.learn.losses import last_block, posterior_kl
from bllpipe.messages import Round, Target
from bllpipe.models.partition import cut
from bllpipe.models.resnet import resnet_units
from bllpipe.models.units import Segment, units_from_modules

CPU = torch.device("cpu")
PLAIN = OptimizerConfig(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)
CONFIG = Config(optimizer=PLAIN, schedule=ScheduleConfig(name="constant"))


def make(config: Config = CONFIG, which: int = 0) -> Block:
    segment = Segment(cut(resnet_units("resnet18", 8, "cifar", 1, 10), 4)[which], seed=0)
    shapes = [(1, 8, 8), (8, 8, 8), (16, 4, 4), (32, 2, 2), (10,)]
    return make_block(segment, shapes[which], shapes[which + 1], config, 10, total_steps=100, is_last=which == 3)


def target(size: int, channels: int) -> Target:
    generator = torch.Generator().manual_seed(1)
    label_B = torch.randint(0, 10, (size,), generator=generator)
    beta_BC = torch.randn(size, channels, generator=generator)
    return Target(Round("train", 0, size=size), beta_BC, torch.ones(size), label_B)


def images(size: int = 6) -> torch.Tensor:
    return torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def test_the_loss_is_kl_and_predictive_loss() -> None:
    config = replace(CONFIG, objective=ObjectiveConfig(kl_weight=0.5, pred_weight=2.0))
    block, aim = make(config), target(6, 8)
    alpha = block.forward(images())
    outcome = block.update(alpha, aim, step=0)
    kl = posterior_kl(Gaussian(), channel_means(alpha), aim.beta_BC, aim.known_B)
    torch.testing.assert_close(outcome.terms["kl"], 0.5 * kl.detach())
    assert outcome.terms.keys() == {"kl", "pred"} and outcome.lr == pytest.approx(0.1)


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_the_norm_that_is_watched_is_that_of_the_gradients_before_they_are_clipped(clip_norm: float | None) -> None:
    block = make(replace(CONFIG, optimizer=replace(PLAIN, clip_norm=clip_norm)))
    aim, twin = target(6, 8), make()
    alpha = twin.forward(images())
    twin.backward(twin.losses(alpha, aim)[0])
    gradients = [p.grad.flatten() for p in twin.learner.parameters.values() if p.grad is not None]
    watched = block.update(block.forward(images()), aim, step=0).watch()
    torch.testing.assert_close(watched["gradient_norm"], torch.cat(gradients).norm())
    alpha = block.infer(images())
    assert "gradient_norm" not in block.outcome(block.score(alpha, block.scores(alpha), aim)).watch(), (
        "a test has no gradients"
    )


def test_what_is_normalised_for_the_kl_is_normalised_for_the_feedback() -> None:
    block, aim = make(replace(CONFIG, objective=ObjectiveConfig(normalize="sample"))), target(6, 8)
    alpha = block.forward(images())
    sums_KC, _ = block.stats(alpha, aim.label_B)
    message_BC = NORMALIZATIONS["sample"](channel_means(alpha))
    torch.testing.assert_close(sums_KC.sum(dim=0), message_BC.sum(dim=0).detach(), atol=1e-5, rtol=0)
    kl = block.losses(alpha, aim)[0]["kl"]
    torch.testing.assert_close(kl, posterior_kl(Gaussian(), message_BC, aim.beta_BC, aim.known_B))


class Means(TorchDispatchMode):
    """Counts how often means over the positions of maps are computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        self.number += func is torch.ops.aten.mean.dim and args[0].dim() == 4
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("keep_weight", [0.0, 0.1])
def test_channel_means_are_computed_once_a_step(keep_weight: float) -> None:
    """For the statistics; the loss and the figures of a line have them from there."""
    block, aim = make(replace(CONFIG, objective=ObjectiveConfig(keep_weight=keep_weight))), target(6, 8)
    alpha = block.forward(images())
    with Means() as means:
        block.stats(alpha, aim.label_B)
        block.update(alpha, aim, step=0).watch()
    assert means.number == 1


@pytest.mark.parametrize("keep_weight", [0.0, 0.1])
def test_a_step_has_the_same_bits_with_statistics_and_without(keep_weight: float) -> None:
    config = replace(CONFIG, objective=ObjectiveConfig(keep_weight=keep_weight))
    first, second, aim = make(config), make(config), target(6, 8)
    for step in range(3):
        for block in (first, second):
            alpha = block.forward(images())
            if block is first:
                block.stats(alpha, aim.label_B)
            block.update(alpha, aim, step)
    state, other = first.learner.state(), second.learner.state()
    assert [name for name in state if not torch.equal(state[name], other[name])] == []


def test_the_step_is_gradient_descent_on_that_loss() -> None:
    block, twin, aim = make(), make(), target(6, 8)
    alpha = twin.forward(images())
    loss = sum(twin.objective(alpha, twin.head(alpha), aim, images()).values())
    assert isinstance(loss, torch.Tensor)
    gradients = torch.autograd.grad(loss, list(twin.learner.parameters.values()))
    block.update(block.forward(images()), aim, step=0)
    for (name, p), gradient in zip(block.learner.parameters.items(), gradients, strict=True):
        torch.testing.assert_close(p, twin.learner.parameters[name] - 0.1 * gradient)


def test_the_last_block_has_its_cross_entropy_alone() -> None:
    block, aim = make(which=3), target(6, 10)
    x = torch.randn(6, 32, 2, 2)
    scores_BK = block.forward(x)
    outcome = block.update(scores_BK, aim, step=0)
    assert outcome.terms.keys() == {"pred"}
    torch.testing.assert_close(outcome.terms["pred"], cross_entropy(scores_BK, aim.label_B).detach())
    assert outcome.correct == (scores_BK.argmax(1) == aim.label_B).sum()


def test_no_gradient_leaves_a_block() -> None:
    block = make(which=1)
    x = torch.randn(4, 8, 8, 8)
    block.update(block.forward(x), target(4, 16), step=0)
    assert x.grad is None and not x.requires_grad


def test_label_smoothing_reaches_every_cross_entropy() -> None:
    smooth = replace(CONFIG, objective=ObjectiveConfig(label_smoothing=0.1))
    for which, channels, shape in ((0, 8, (1, 8, 8)), (3, 10, (32, 2, 2))):
        x, aim = torch.randn(4, *shape), target(4, channels)
        plain_block, smooth_block = make(which=which), make(smooth, which)
        plain = plain_block.update(plain_block.forward(x), aim, 0).terms["pred"]
        assert not torch.equal(plain, smooth_block.update(smooth_block.forward(x), aim, 0).terms["pred"])


def test_clipping_bounds_the_step() -> None:
    config = replace(CONFIG, optimizer=replace(PLAIN, clip_norm=1e-3))
    block = make(config)
    before = {name: p.detach().clone() for name, p in block.learner.parameters.items()}
    block.update(block.forward(images()), target(6, 8), step=0)
    moved = (
        sum(float((p.detach() - before[name]).square().sum()) for name, p in block.learner.parameters.items()) ** 0.5
    )
    assert moved <= 0.1 * 1e-3 * 1.001


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_loaded_state_goes_on_with_the_same_bits(name: str) -> None:
    config = replace(CONFIG, optimizer=OptimizerConfig(name=name, lr=0.01))  # type: ignore[arg-type]
    straight, stopped = make(config), make(config)
    for step in range(3):
        for block in (straight, stopped):
            block.update(block.forward(images()), target(6, 8), step)
    resumed = make(replace(config, seed=9))
    assert resumed.learner.load({key: value.clone() for key, value in stopped.learner.state().items()}) == []
    for block in (straight, resumed):
        block.update(block.forward(images()), target(6, 8), 3)
    assert all(torch.equal(value, resumed.learner.weights()[key]) for key, value in straight.learner.weights().items())


def test_missing_weights_are_named() -> None:
    state = make().learner.state()
    del state["model.conv1.weight"]
    assert make().learner.load(state) == ["model.conv1.weight"]


@pytest.mark.parametrize("name", ["model.conv1.weight", "optimizer.model.conv1.weight.momentum_buffer"])
def test_a_state_of_another_shape_is_refused(name: str) -> None:
    state = {key: value.detach().clone() for key, value in make().learner.state().items()}
    state[name] = state[name][:1]
    with pytest.raises(CheckpointError, match=rf"holds {name} as float32\[1, 1, 3, 3\], but .* float32\[8, 1, 3, 3\]"):
        make().learner.load(state)


def test_norms_and_biases_are_not_decayed_unless_asked() -> None:
    block = make()
    assert block.learner.optimizer.undecayed and all(
        block.learner.parameters[name].dim() == 1 for name in block.learner.optimizer.undecayed
    )
    assert all(block.learner.parameters[name].dim() > 1 for name in block.learner.optimizer.decayed)
    everything = make(replace(CONFIG, optimizer=OptimizerConfig(decay_norm_and_bias=True)))
    assert everything.learner.optimizer.undecayed == []


@pytest.mark.parametrize("config", [OptimizerConfig(), PLAIN, OptimizerConfig(name="adamw")])
def test_updates_are_bit_for_bit_those_of_torch(config: OptimizerConfig) -> None:
    ours = make(replace(CONFIG, optimizer=config))
    theirs = [p.detach().clone().requires_grad_() for p in ours.learner.parameters.values()]
    groups = [[p for p in theirs if p.dim() > 1], [p for p in theirs if p.dim() == 1]]
    decays: list[dict[str, Any]] = [
        {"params": group, "weight_decay": decay} for group, decay in zip(groups, (config.weight_decay, 0), strict=True)
    ]
    if config.name == "adamw":
        oracle: torch.optim.Optimizer = torch.optim.AdamW(decays, lr=0.01, betas=(0.9, 0.999), fused=True)
    else:
        oracle = torch.optim.SGD(decays, lr=0.01, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    for step in range(4):
        for mine, other in zip(ours.learner.parameters.values(), theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(step))
            other.grad = mine.grad.clone()
        ours.learner.optimizer.step(0.01)
        oracle.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.learner.parameters.values(), theirs, strict=True))


def test_bf16_computes_in_bf16_and_learns_in_fp32() -> None:
    block = make(replace(CONFIG, precision=PrecisionConfig(compute="bf16")))
    alpha = block.forward(images())
    outcome = block.update(alpha, target(6, 8), step=0)
    assert alpha.dtype is torch.bfloat16 and outcome.terms["kl"].dtype is torch.float32
    assert all(p.dtype is torch.float32 for p in block.learner.parameters.values())


@pytest.mark.parametrize("head", sorted(HEADS))
@pytest.mark.parametrize(
    ("shape", "at_most", "pool"), [((16, 32, 32), 4096, 16), ((512, 4, 4), 2048, 2), ((96, 2, 2), 64, 1)]
)
def test_heads_read_at_most_the_features_they_may(
    head: str, shape: tuple[int, int, int], at_most: int, pool: int
) -> None:
    module = make_head(shape, 10, ObjectiveConfig(head=head, head_features=at_most), 64)  # type: ignore[arg-type]
    assert module.eval()(torch.randn(2, *shape)).shape == (2, 10)
    assert pooled_shape(shape, at_most) == (pool, pool)


def test_heads_for_tokens_and_vectors() -> None:
    assert make_head((9, 6), 4, ObjectiveConfig())(torch.randn(2, 9, 6)).shape == (2, 4)
    assert make_head((6,), 4, ObjectiveConfig())(torch.randn(2, 6)).shape == (2, 4)


def test_alpha_shape_leaves_the_segment_as_it_was() -> None:
    segment = Segment(cut(resnet_units("resnet18", 8, "cifar", 1, 10), 4)[0], seed=0)
    before = {key: value.clone() for key, value in segment.state_dict().items()}
    assert alpha_shape(segment, (1, 8, 8), CPU) == (8, 8, 8)
    assert all(torch.equal(value, before[key]) for key, value in segment.state_dict().items())


def test_every_segment_takes_what_the_one_before_it_gives() -> None:
    parts = cut(resnet_units("resnet18", 8, "cifar", 1, 10), 4)
    built = list(build_segments(parts, CONFIG, (1, 8, 8), CPU))
    assert [segment.last_unit for segment, _, _ in built] == [part[-1].name for part in parts]
    shapes = [(1, 8, 8), (8, 8, 8), (16, 4, 4), (32, 2, 2), (10,)]
    assert [(given, made) for _, given, made in built] == list(pairwise(shapes))


def test_a_block_without_parameters_is_refused() -> None:
    segment = Segment(units_from_modules({"0": nn.Flatten()}), seed=0)
    with pytest.raises(ConfigError, match="ends with 0 has no parameters"):
        Block(segment, nn.Identity(), last_block(ObjectiveConfig()), CONFIG, 10, 100)
