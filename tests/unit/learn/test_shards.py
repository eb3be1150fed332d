"""A step over the shards of a batch: gradients, losses, hits and running statistics."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from bllpipe.config import Config, load_config
from bllpipe.learn.block import Block, Outcome, make_block
from bllpipe.learn.feedback import ClosedForm
from bllpipe.learn.running_buffers import RunningBuffers
from bllpipe.messages import Round, Target
from bllpipe.models.registry import network_units
from bllpipe.models.units import Segment
from bllpipe.utils.tree_sum import TreeSum

SIZE, CLASSES, CHANNELS = 12, 3, 4


class Plain(nn.Sequential):
    """A layer without statistics over the batch."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(2, CHANNELS, 3, padding=1), nn.Tanh())


class Normed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(2, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU())


def modules(in_channels: int, num_classes: int, kind: str) -> list[nn.Module]:
    return [Plain() if kind == "plain" else Normed(), nn.Sequential(nn.Flatten(1), nn.Linear(CHANNELS, num_classes))]


def made(kind: str, *settings: str) -> Block:
    """A block of one layer with its head, in float64."""
    config = load_config(None, [f"model.name={__name__}:modules", f"model.args.kind={kind}", *settings])
    segment = Segment(network_units(config.model, (2, 5, 5), CLASSES, seed=0)[:1], seed=0)
    block = make_block(segment, (2, 5, 5), (CHANNELS, 5, 5), config, CLASSES, total_steps=10, is_last=False)
    for part in (block.segment, block.local):
        part.double()
    block.learner.optimizer.state = {name: value.double() for name, value in block.learner.optimizer.state.items()}
    return block


def batch(step: int) -> tuple[Tensor, Target]:
    draws = torch.Generator().manual_seed(step)
    x = torch.randn(SIZE, 2, 5, 5, generator=draws, dtype=torch.float64)
    label_B = torch.randint(0, CLASSES, (SIZE,), generator=draws)
    beta_BC = torch.randn(SIZE, CHANNELS, generator=draws, dtype=torch.float64)
    return x, Target(Round("train", step, size=SIZE), beta_BC, (label_B > 0).double(), label_B)


def parts(step: int, number: int) -> Iterator[tuple[Round, Tensor, Target]]:
    x, target = batch(step)
    shards = target.round.shards(number)
    sizes = [shard.size for shard in shards]
    tensors = (x, target.beta_BC, target.known_B, target.label_B)
    for shard, part, *of_target in zip(shards, *(each.split(sizes) for each in tensors), strict=True):
        yield shard, part, Target(shard, *of_target)


def train(block: Block, step: int, number: int) -> Outcome:
    total = TreeSum(number)
    for shard, x, target in parts(step, number):
        alpha = block.forward(x)
        block.stats(alpha, target.label_B)
        total.add(shard.shard, block.learn(alpha, target, shard.size / SIZE))
    return block.step(total.total(), step)


@pytest.mark.parametrize("settings", [(), ("optimizer.clip_norm=0.1",), ("objective.head=mlp",), ("method=dgl",)])
@pytest.mark.parametrize("number", [2, 3, 4, 12])
def test_without_statistics_over_the_batch_shards_only_round(number: int, settings: tuple[str, ...]) -> None:
    whole, divided = made("plain", *settings), made("plain", *settings, f"shards={number}", "data.batch_size=12")
    for step in range(4):
        one, many = train(whole, step, 1), train(divided, step, number)
        assert many.terms.keys() == one.terms.keys()
        for name, term in one.terms.items():
            assert many.terms[name].item() == pytest.approx(term.item(), rel=1e-12)
        assert many.correct == one.correct
        assert many.watch()["gradient_norm"].item() == pytest.approx(one.watch()["gradient_norm"].item(), rel=1e-12)
    for name, value in whole.learner.state().items():
        assert value.dtype == torch.float64, "or 1e-10 is not to be had"
        torch.testing.assert_close(divided.learner.state()[name], value, rtol=0, atol=1e-10)


def test_batch_norm_normalises_every_shard_and_moves_once_a_step_by_the_mean() -> None:
    block = made("normed", "shards=3", "data.batch_size=12")
    norm = next(module for module in block.segment.modules() if isinstance(module, nn.BatchNorm2d))
    convolution = next(module for module in block.segment.modules() if isinstance(module, nn.Conv2d))
    inputs = [convolution(x).detach() for _, x, _ in parts(0, 3)]
    train(block, 0, 3)
    mean_C = torch.stack([x.mean(dim=(0, 2, 3)) for x in inputs]).mean(dim=0)
    variance_C = torch.stack([x.var(dim=(0, 2, 3)) for x in inputs]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean_C, rtol=0, atol=1e-12)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variance_C, rtol=0, atol=1e-12)
    assert norm.num_batches_tracked == 1


def test_norm_sync_is_the_step_of_one_shard() -> None:
    assert load_config(None, ["shards=4", "norm=sync"]).num_passes == 1
    assert load_config(None, ["shards=4"]).num_passes == 4


def test_buffers_that_no_shard_moves_keep_their_bits() -> None:
    """A third of three times a value may be another one."""
    module, fixed = nn.Module(), torch.rand(1000, generator=torch.Generator().manual_seed(0))
    module.register_buffer("fixed", fixed)
    before, buffers, total = fixed.clone(), RunningBuffers([("model", module)], 3), TreeSum(3)
    for shard in range(3):
        buffers.begin_shard()
        total.add(shard, buffers.moves())
    buffers.move(total.total())
    assert torch.equal(fixed, before)


def test_with_one_shard_the_forward_pass_moves_the_buffers_and_nothing_is_copied() -> None:
    buffers = RunningBuffers([("model", nn.BatchNorm1d(3))], 1)
    buffers.begin_shard()
    assert buffers.moves() == {}


def test_the_feedback_keeps_float64() -> None:
    feedback = ClosedForm(CLASSES, CHANNELS, decay=0.9, ridge=1e-3).double()
    beta_KC, known_K = feedback.table()
    assert beta_KC.dtype == known_K.dtype == torch.float64


def test_a_test_batch_is_the_mean_over_shards_of_unequal_size() -> None:
    block = made("plain")
    x, target = batch(0)
    whole = block.outcome(_score(block, x, target, 1.0))
    shards = [Round("evaluate", 0, size=SIZE), *Round("evaluate", 0, size=SIZE).shards(5)]
    assert [shard.size for shard in shards[1:]] == [3, 3, 3, 3], "twelve images are four times three, not five parts"
    total, first = TreeSum(2), 0
    for number, size in enumerate((8, 4)):
        part = slice(first, first + size)
        of_part = Target(target.round, target.beta_BC[part], target.known_B[part], target.label_B[part])
        total.add(number, _score(block, x[part], of_part, size / SIZE))
        first += size
    outcome = block.outcome(total.total())
    for name, term in whole.terms.items():
        assert outcome.terms[name].item() == pytest.approx(term.item(), rel=1e-12)
    assert outcome.correct == whole.correct


def _score(block: Block, x: Tensor, target: Target, share: float) -> dict[str, Tensor]:
    alpha = block.infer(x)
    return block.score(alpha, block.scores(alpha), target, share=share)


def test_the_default_is_one_shard() -> None:
    assert Config().num_shards == 1
