"""Units that are computed again in the backward pass: the same bits, and nothing but their inputs is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from bllpipe.config import load_config
from bllpipe.errors import ConfigError
from bllpipe.learn.block import Block, alpha_shape, make_block
from bllpipe.learn.draws import Draws
from bllpipe.learn.feedback_alignment import propagate
from bllpipe.learn.recompute import recompute_units
from bllpipe.messages import Round, Target
from bllpipe.models.units import Segment, units_from_modules
from bllpipe.tools.planning.profiler import kept_bytes

CLASSES, CHANNELS, SIZE, SHARDS = 3, 4, 8, 2


class Assigning(nn.Module):
    """Replaces its buffer in every pass, and its output depends on it."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return x * self.seen


def network(method: str = "bll") -> list[nn.Module]:
    """All that a second pass could do twice: running statistics, power iterations, dropout, buffers. Layers whose
    weights are replaced for feedback alignment have no power iterations."""
    first = nn.Sequential(nn.Conv2d(2, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU())
    layer = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    second = nn.Sequential(layer if method in ("fa", "usf") else spectral_norm(layer), nn.Tanh(), nn.Dropout(0.5))
    return [first, second, nn.Sequential(Assigning(), nn.Conv2d(CHANNELS, CHANNELS, 1))]


def trained(recompute: bool, *settings: str) -> dict[str, Tensor]:
    """The state after three steps of two shards each."""
    config = load_config(None, [f"shards={SHARDS}", f"data.batch_size={SIZE}", *settings])
    torch.manual_seed(0)
    modules, is_last = network(config.method), config.is_end_to_end
    if is_last:
        modules.append(nn.Sequential(nn.Flatten(1), nn.Linear(CHANNELS * 25, CLASSES)))
    segment = Segment(units_from_modules({str(number): module for number, module in enumerate(modules)}), seed=0)
    propagate(segment, config.method, CLASSES, seed=0)
    if recompute:
        recompute_units(segment)
    shape = alpha_shape(segment, (2, 5, 5), torch.device("cpu"))  # the first pass draws the feedback weights of dfa
    block = make_block(segment, (2, 5, 5), shape, config, CLASSES, total_steps=3, is_last=is_last)
    for step in range(3):
        train(block, step)
    return block.learner.state()


def train(block: Block, step: int) -> None:
    draws, numbers = Draws(0, "unit", torch.device("cpu"), found=True), torch.Generator().manual_seed(step)
    total: dict[str, Tensor] = {}
    for shard in range(SHARDS):
        size = SIZE // SHARDS
        label_B = torch.randint(0, CLASSES, (size,), generator=numbers)
        beta_BC = torch.randn(size, block.message_size, generator=numbers)
        target = Target(Round("train", step, size=size, shard=shard), beta_BC, torch.ones(size), label_B)
        with draws.of("forward", step, shard):
            alpha = block.forward(torch.randn(size, 2, 5, 5, generator=numbers))
        block.stats(alpha, label_B)
        with draws.of("loss", step, shard):
            sums = block.learn(alpha, target, 1 / SHARDS)
        total = {name: value + total[name] if name in total else value.clone() for name, value in sums.items()}
    block.step(total, step)


@pytest.mark.parametrize(
    "settings",
    [
        ["method=bll"],
        ["method=bll", "precision.compute=bf16"],
        ["method=bll", "channels_last=true"],
        ["method=dgl"],
        ["method=predsim"],
        *(["engine=single", f"method={method}"] for method in ("bp", "fa", "usf", "dfa")),
    ],
    ids=lambda settings: "-".join(settings).replace("method=", ""),
)
def test_recomputation_changes_no_bit(settings: list[str]) -> None:
    expected, found = trained(False, *settings), trained(True, *settings)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_only_inputs_of_units_are_kept() -> None:
    segment = Segment(units_from_modules({str(number): module for number, module in enumerate(network())}), seed=0)
    x, of_unit = torch.zeros(2, 2, 5, 5), torch.zeros(2, CHANNELS, 5, 5).nbytes
    before = kept_bytes(lambda: [segment(x)], segment.parameters())
    recompute_units(segment)
    inputs, output = x.nbytes + 2 * of_unit, of_unit
    assert kept_bytes(lambda: [segment(x)], segment.parameters()) == inputs + output < before


def test_a_unit_that_changes_its_input_in_place_is_refused() -> None:
    modules: dict[str, Any] = {"0": nn.Conv2d(2, 4, 3), "1": nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))}
    segment = Segment(units_from_modules(modules), seed=0)
    recompute_units(segment)
    with pytest.raises(ConfigError, match="unit 1 changes its input in place, .* --set model.recompute=none"):
        segment(torch.zeros(1, 2, 5, 5))


def test_a_test_pass_keeps_nothing() -> None:
    segment = Segment(units_from_modules({"0": network()[0]}), seed=0)
    recompute_units(segment)
    with torch.no_grad():
        assert not segment(torch.zeros(2, 2, 5, 5)).requires_grad
