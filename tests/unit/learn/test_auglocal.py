"""Heads that are made of residual units like those after the block."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from bllpipe.config import Config, load_config
from bllpipe.config.schema import ObjectiveConfig
from bllpipe.errors import ConfigError
from bllpipe.learn.block import build_segments, make_block
from bllpipe.learn.heads import make_head
from bllpipe.models.partition import cut
from bllpipe.models.registry import network_units, units_after
from bllpipe.models.resnet import BasicBlock, Bottleneck
from tests.unit.learn.test_block import CPU, target


def auglocal(name: str, unit: str, units: int, width: int = 8) -> tuple[Config, torch.nn.Module]:
    settings = [
        f"model.name={name}",
        f"model.width={width}",
        "objective.head=auglocal",
        f"objective.head_units={units}",
    ]
    config = load_config(None, settings)
    expansion = 1 if name in ("resnet18", "resnet34") else 4
    stage = int(unit[5])
    shape = (width * 2 ** (stage - 1) * expansion, 16 >> (stage - 1), 16 >> (stage - 1))
    return config, make_head(shape, 10, config.objective, later=units_after(config, unit))


def strides(head: torch.nn.Module) -> list[tuple[int, int]]:
    """Output channels and stride of the residual units of a head."""
    found = [each for each in head.modules() if isinstance(each, (BasicBlock, Bottleneck))]
    convolutions = [each.conv1 if isinstance(each, BasicBlock) else each.conv2 for each in found]
    planes = [each.conv2.out_channels for each in found]
    return [(channels, conv.stride[0]) for channels, conv in zip(planes, convolutions, strict=True)]


@pytest.mark.parametrize(
    ("name", "unit", "units", "expected"),
    [
        ("resnet18", "layer1.1", 2, [(32, 4), (64, 2)]),
        ("resnet18", "layer1.1", 3, [(16, 2), (32, 2), (64, 2)]),
        ("resnet18", "layer4.0", 3, [(64, 1)]),
        ("resnet34", "layer2.3", 2, [(32, 2), (64, 2)]),
        ("resnet34", "layer1.0", 3, [(16, 2), (32, 2), (64, 2)]),
        ("resnet50", "layer3.3", 2, [(32, 1), (64, 2)]),
    ],
)
def test_units_are_evenly_spaced_up_to_the_last_with_the_strides_between(
    name: str, unit: str, units: int, expected: list[tuple[int, int]]
) -> None:
    config, head = auglocal(name, unit, units)
    assert strides(head) == expected
    *_, linear = head.modules()
    assert isinstance(linear, torch.nn.Linear) and linear.out_features == 10
    after = units_after(config, unit)
    assert linear.in_features == after[-1].out_channels
    product = torch.tensor([each.stride for each in after]).prod()
    assert torch.tensor([stride for _, stride in expected]).prod() == product, "as many positions as the network"


def test_gradients_reach_the_block_and_cross_none() -> None:
    config = load_config(None, ["model.width=8", "objective.head=auglocal", "method=dgl"])
    parts = cut(network_units(config.model, (1, 8, 8), 10, config.seed), 4)
    segments = list(build_segments(parts, config, (1, 8, 8), CPU))
    blocks = [make_block(*each, config, 10, 100, number == 3, number=number) for number, each in enumerate(segments)]
    x = torch.randn(6, 1, 8, 8)
    for block in blocks:
        alpha = block.forward(x.detach())
        assert (block.x.grad_fn, block.x.requires_grad) == (None, False), "no gradient crosses"
        before = {name: value.detach().clone() for name, value in block.learner.parameters.items()}
        block.update(alpha, target(6, block.message_size), step=0)
        assert [name for name, value in before.items() if torch.equal(value, block.learner.parameters[name])] == []
        x = alpha
    shared = [set(one.learner.parameters) & set(other.learner.parameters) for one, other in pairwise(blocks)]
    assert not any(shared)


def test_without_a_later_unit_it_says_what_to_use() -> None:
    with pytest.raises(ConfigError, match=r"no residual unit comes after this block; use --set objective\.head=gap"):
        make_head((8, 4, 4), 10, ObjectiveConfig(head="auglocal"))


def test_other_heads_know_of_no_later_units() -> None:
    config = load_config(None, [])
    assert units_after(config, "layer1.1") == []
    assert len(units_after(replace(config, objective=ObjectiveConfig(head="auglocal")), "layer1.1")) == 6
