"""The strided head, scaled heads, and heads that learn more slowly; what real features allow as a learning rate."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.head_rates import head_rates, largest_eigenvalue
from bllpipe.config import Config, load_config
from bllpipe.config.schema import ObjectiveConfig, OptimizerConfig
from bllpipe.errors import ConfigError
from bllpipe.learn.block import Block, make_block
from bllpipe.learn.heads import ScaledLinear, make_head
from bllpipe.learn.optimizer import Optimizer
from bllpipe.models.partition import cut
from bllpipe.models.registry import last_width, network_units
from bllpipe.models.units import Segment, Unit, units_from_modules
from tests.unit.learn.test_block import CONFIG, images, target

STRIDED = ObjectiveConfig(head="strided")
UNSCALED = "objective.head_scale=false"


def widths(head: nn.Module) -> list[tuple[int, int, int]]:
    """Channels, kernel and stride of every convolution."""
    found = [each for each in head.modules() if isinstance(each, nn.Conv2d)]
    return [(each.out_channels, each.kernel_size[0], each.stride[0]) for each in found]


@pytest.mark.parametrize(
    ("shape", "reduce", "last", "convolutions"),
    [
        ((16, 16, 16), None, 128, [(32, 3, 2), (64, 3, 2), (128, 3, 2)]),
        ((32, 8, 8), None, 128, [(64, 3, 2), (128, 3, 2)]),
        ((128, 2, 2), None, 128, []),
        ((16, 2, 2), None, 128, [(32, 3, 2), (64, 1, 1), (128, 1, 1)]),
        ((16, 1, 3), None, 64, [(32, 3, 2), (64, 3, 2)]),
        ((48, 9, 7), None, 128, [(96, 3, 2), (128, 3, 2)]),
        ((512, 16, 16), 128, 512, [(128, 1, 1), (256, 3, 2), (512, 3, 2)]),
        ((1024, 8, 8), 128, 512, [(128, 1, 1), (256, 3, 2), (512, 3, 2)]),
        ((64, 8, 8), 128, 256, [(128, 3, 2), (256, 3, 2)]),
    ],
)
def test_convolutions_halve_and_double_until_the_last_width(
    shape: tuple[int, int, int], reduce: int | None, last: int, convolutions: list[tuple[int, int, int]]
) -> None:
    head = make_head(shape, 10, replace(STRIDED, head_reduce=reduce), last)
    assert widths(head) == convolutions
    assert head(torch.randn(3, *shape)).shape == (3, 10)
    *_, linear = head.modules()
    assert isinstance(linear, nn.Linear) and linear.in_features == max(last, shape[0] if reduce is None else 0)


def test_one_position_gets_what_a_3x3_convolution_would_give_it() -> None:
    wide, narrow = nn.Conv2d(4, 8, 3, 2, padding=1, bias=False), nn.Conv2d(4, 8, 1, bias=False)
    with torch.no_grad():
        narrow.weight.copy_(wide.weight[:, :, 1:2, 1:2])
    x = torch.randn(5, 4, 1, 1)
    torch.testing.assert_close(narrow(x), wide(x))


def test_a_width_of_ones_own_comes_first() -> None:
    assert widths(make_head((16, 8, 8), 10, replace(STRIDED, head_width=64), 128)) == [(32, 3, 2), (64, 3, 2)]


def test_a_width_that_is_not_known_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"the last width of the network is unknown.*--set objective\.head_width=512"):
        make_head((16, 8, 8), 10, STRIDED)


def test_tokens_and_vectors_have_the_linear_head() -> None:
    for shape in ((9, 6), (6,)):
        assert make_head(shape, 4, STRIDED)(torch.randn(2, *shape)).shape == (2, 4)


@pytest.mark.parametrize(("name", "width", "last"), [("resnet18", 16, 128), ("resnet34", 8, 64), ("resnet50", 64, 512)])
def test_the_last_width_of_a_resnet_is_that_of_its_last_3x3_convolutions(name: str, width: int, last: int) -> None:
    config = load_config(None, [f"model.name={name}", f"model.width={width}", "objective.head=strided"])
    units = network_units(config.model, (3, 8, 8), 10, seed=0)
    assert last_width(config, units) == last
    found = [each for each in units[-1].layers[0].make().modules() if isinstance(each, nn.Conv2d)]
    assert [each.out_channels for each in found if each.kernel_size == (3, 3)][-1] == last


def own(*modules: nn.Module) -> list[Unit]:
    return units_from_modules({str(number): module for number, module in enumerate(modules)})


@pytest.mark.parametrize(
    ("modules", "last"),
    [
        ([nn.Conv2d(3, 24, 3), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))], 24),
        ([nn.Flatten(), nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 10))], 20),
        ([nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1)], None),
        ([nn.Flatten(), nn.LazyLinear(10)], None),
    ],
)
def test_the_last_width_of_another_network_is_what_its_last_linear_layer_reads(
    modules: list[nn.Module], last: int | None
) -> None:
    config = load_config(None, ["model.name=some.module:function", "objective.head=strided"])
    assert last_width(config, own(*modules)) == last
    assert last_width(load_config(None, ["model.name=some.module:function"]), own(*modules)) is None


def with_head(**objective: Any) -> Block:
    """The first block of the digits' network, eight channels wide."""
    config = replace(CONFIG, objective=ObjectiveConfig(**objective))
    units = network_units(replace(config.model, width=8), (1, 8, 8), 10, config.seed)
    segment = Segment(cut(units, 4)[0], config.seed)
    return make_block(segment, (1, 8, 8), (8, 8, 8), config, 10, 100, False, 64)


def test_a_strided_head_learns_with_its_block_and_from_nothing_else() -> None:
    block, aim = with_head(head="strided"), target(6, 8)
    x = images().requires_grad_()
    before = {name: value.detach().clone() for name, value in block.learner.parameters.items()}
    block.update(block.forward(x.detach()), aim, step=0)
    assert [name for name, value in block.learner.parameters.items() if torch.equal(value, before[name])] == []
    assert {name.split(".")[0] for name in before} == {"model", "heads"}
    losses = [float(block.update(block.forward(x.detach()), aim, step).terms["pred"].detach()) for step in range(8)]
    assert losses[-1] < losses[0] and x.grad is None


@pytest.mark.parametrize("head", ["linear", "mlp", "conv", "narrow", "gap"])
def test_heads_of_before_keep_their_bits(head: str) -> None:
    """What the new keys do is nothing, whatever width the network has; by default a linear head is scaled."""
    config = ObjectiveConfig(head=head, head_features=64, head_scale=False)  # type: ignore[arg-type]
    assert ObjectiveConfig(head=head).is_head_scaled == (head == "linear")  # type: ignore[arg-type]
    made = []
    for last in (None, 128):
        torch.manual_seed(5)
        made.append(make_head((8, 8, 8), 10, config, last))
    x = torch.randn(4, 8, 8, 8)
    assert torch.equal(made[0](x), made[1](x))
    assert not any(isinstance(each, ScaledLinear) for each in made[0].modules())


def heads_of(block: Block) -> dict[str, Tensor]:
    parameters = block.learner.parameters.items()
    return {name: value.detach().clone() for name, value in parameters if name.startswith("heads.")}


@pytest.mark.parametrize("on_device", [False, True])
def test_half_the_rate_is_half_a_step_of_the_head_and_a_whole_one_of_the_block(on_device: bool) -> None:
    """Without momentum and decay, and exactly: to halve is exact. From zero, as a sum would be rounded."""
    steps = []
    for factor in (1.0, 0.5):
        block = with_head(head_lr=factor)
        if on_device:
            block.learner.optimizer.keep_rate_on_device()  # as a GPU does
        alpha = block.forward(images())
        terms, _, _ = block.losses(alpha, target(6, 8))
        block.backward(terms)
        with torch.no_grad():
            for parameter in block.learner.parameters.values():
                parameter.zero_()
        assert block.step_optimizer(0) == pytest.approx(0.1), "the rate that is told is that of the block"
        steps.append({name: value.detach() for name, value in block.learner.parameters.items()})
    for name, whole in steps[0].items():
        assert whole.any(), name
        assert torch.equal(steps[1][name], whole * 0.5 if name.startswith("heads.") else whole), name


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_factor_is_a_parameter_group_of_torch_with_another_rate(name: str, on_device: bool) -> None:
    """Decay included: AdamW decays by rate times weight decay."""
    config = OptimizerConfig(name=name, weight_decay=0.1)  # type: ignore[arg-type]
    torch.manual_seed(0)
    ours = {key: nn.Parameter(torch.randn(4, 3)) for key in ("model.a", "heads.b")}
    theirs = {key: nn.Parameter(value.detach().clone()) for key, value in ours.items()}
    optimizer = Optimizer(ours, config, {"heads.b": 0.25})
    if on_device:
        optimizer.keep_rate_on_device()
    lr = 0.0625  # which float32 holds exactly
    groups: list[Any] = [{"params": [theirs["model.a"]], "lr": lr}, {"params": [theirs["heads.b"]], "lr": lr * 0.25}]
    kinds: dict[str, Any] = {"sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True), "adamw": torch.optim.AdamW}
    oracle = kinds[name](groups, lr=lr, weight_decay=0.1, fused=True)
    for _ in range(3):
        for mine, other in zip(ours.values(), theirs.values(), strict=True):
            mine.grad = torch.randn(4, 3)
            other.grad = mine.grad.clone()
        optimizer.step(lr)
        oracle.step()
    for mine, other in zip(ours.values(), theirs.values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_a_scaled_head_is_a_plain_one_whose_weights_learn_more_slowly() -> None:
    """512 features: s = 1/2, and what is multiplied by a power of two is not rounded. Bit for bit."""
    features, rate, scale = 512, 0.25, 0.5
    torch.manual_seed(0)
    scaled = ScaledLinear(features, 10)
    weight_KF, bias_K = scaled.weight.detach() * scale, scaled.bias.detach().clone()
    for step in range(5):
        f_BF, label_B = torch.randn(8, features), torch.arange(8) % 10
        weight_KF.requires_grad_(), bias_K.requires_grad_()
        scores, expected = scaled(f_BF), f_BF @ weight_KF.T + bias_K
        torch.testing.assert_close(scores, expected, msg=f"step {step}")
        ours = torch.autograd.grad(cross_entropy(scores, label_B), [scaled.weight, scaled.bias])
        plain = torch.autograd.grad(
            cross_entropy(nn.functional.linear(f_BF, weight_KF, bias_K), label_B), [weight_KF, bias_K]
        )
        with torch.no_grad():
            scaled.weight.sub_(rate * ours[0])
            scaled.bias.sub_(rate * ours[1])
            weight_KF = weight_KF.detach() - rate * scale**2 * plain[0]
            bias_K = bias_K.detach() - rate * plain[1]
        assert torch.equal(scaled.weight.detach() * scale, weight_KF), f"step {step}"
        assert torch.equal(scaled.bias.detach(), bias_K), f"step {step}"


@pytest.mark.parametrize(("features", "scale"), [(5, 1.0), (128, 1.0), (512, 0.5), (2048, 0.25)])
def test_features_are_never_enlarged(features: int, scale: float) -> None:
    """Few of them bear large rates; enlarged, they would not."""
    layer, x = ScaledLinear(features, 3), torch.randn(4, features)
    assert torch.equal(layer(x), nn.functional.linear(scale * x, layer.weight, layer.bias))


@pytest.mark.parametrize("head", ["linear", "mlp", "conv", "narrow", "gap", "strided"])
def test_a_scale_changes_neither_names_nor_initial_values(head: str) -> None:
    made = []
    for scale in (False, True):
        torch.manual_seed(5)
        made.append(make_head((8, 8, 8), 10, ObjectiveConfig(head=head, head_scale=scale), 64))  # type: ignore[arg-type]
    plain, scaled = (head.state_dict() for head in made)
    assert plain.keys() == scaled.keys() and all(torch.equal(value, scaled[name]) for name, value in plain.items())
    assert sum(isinstance(each, ScaledLinear) for each in made[1].modules()) == 1


def test_bf16_with_channels_last_on_a_cpu() -> None:
    config = load_config(None, ["precision.compute=bf16", "channels_last=true", "objective.head=strided"])
    units = network_units(replace(config.model, width=8), (1, 8, 8), 10, config.seed)
    block = make_block(Segment(cut(units, 4)[0], config.seed), (1, 8, 8), (8, 8, 8), config, 10, 100, False, 64)
    alpha = block.forward(images())
    assert alpha.dtype is torch.bfloat16 and alpha.is_contiguous(memory_format=torch.channels_last)
    before = heads_of(block)
    block.update(alpha, target(6, 8), step=0)
    assert all(value.isfinite().all() and not torch.equal(value, before[key]) for key, value in heads_of(block).items())
    assert all(value.dtype is torch.float32 for value in block.learner.parameters.values())


def cifar10(num_images: int) -> Tensor:
    """Real training images, normalised, from lossless grids next to the repository; skips without them."""
    folders = [parent / "shared" / "data" / "cifar10" for parent in Path(__file__).resolve().parents]
    folder = next((found for found in folders if (found / "meta.json").exists()), None)
    if folder is None:
        pytest.skip("no shared/data/cifar10 next to the repository")
    from PIL import Image

    meta = json.loads((folder / "meta.json").read_text())
    (rows, columns), (height, width, channels) = meta["grid"], meta["image_shape"]
    pixels = np.asarray(Image.open(sorted(folder.glob("train_*.webp"))[0]).convert("RGB"))
    tiles = pixels.reshape(rows, height, columns, width, channels).transpose(0, 2, 4, 1, 3)
    images_BCHW = torch.from_numpy(np.ascontiguousarray(tiles.reshape(-1, channels, height, width)[:num_images]))
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]))
    return (images_BCHW / 255 - mean) / std


@torch.no_grad()
def test_what_real_features_allow_at_the_start() -> None:
    """Momentum SGD bears lr < 3.8 / (0.1 L). With 4,096 features of the first of four blocks a rate of 0.1 is too much
    before the first step, with 1,024 still; with 256 and with the strided head it is not."""
    x = cifar10(512)
    config: Config = load_config(None, ["model.stem=half", "objective.head=strided"])
    units = network_units(config.model, (3, 8, 8), 10, config.seed)
    alpha = Segment(cut(units, 4)[0], config.seed).train()(x)
    assert alpha.shape[1:] == (16, 16, 16)

    def moment(objective: ObjectiveConfig) -> float:
        torch.manual_seed(1)
        head = make_head(tuple(alpha.shape[1:]), 10, objective, last_width(config, units))
        return largest_eigenvalue(nn.Sequential(*list(head.children())[:-1]).train()(alpha).flatten(1))

    found = {size: moment(ObjectiveConfig(head_features=size)) for size in (4096, 1024, 256)}
    strided, most = moment(STRIDED), 3.8 / (0.1 * 0.1)
    assert found[4096] == pytest.approx(3655, rel=0.35) and found[1024] == pytest.approx(874, rel=0.35)
    assert found[256] == pytest.approx(213, rel=0.35)
    assert found[4096] > found[1024] > most > found[256] > strided
    assert strided < most / 4, "even a rate of 0.4 is borne"


@pytest.mark.parametrize("scale", [True, False])
def test_scaled_heads_bear_about_the_rates_of_the_classifier(scale: bool) -> None:
    """What makes the rates of backpropagation too large for linear heads, and the default that avoids it; all blocks of
    the small network, on real images."""
    config = load_config(None, ["model.stem=half", "objective.head_features=1024"] + ([] if scale else [UNSCALED]))
    *heads, network = head_rates(config, cifar10(256), 10)
    assert [head.features for head in heads] == [1024, 800, 1024] and network.features == 128
    shares = [head.momentum_limit / network.momentum_limit for head in heads]
    assert min(shares) > 0.5 if scale else max(shares) < 0.25
    assert network.momentum_limit == pytest.approx(3.8 * 10 / network.eigenvalue)
    assert network.nesterov_limit == pytest.approx(network.momentum_limit / 2.8)


@pytest.mark.parametrize("nesterov", [False, True])
def test_what_torchs_sgd_bears_on_a_parabola(nesterov: bool) -> None:
    """Below the limit it comes to rest, above it never does."""
    ends = []
    for share in (0.98, 1.02):
        rate = share * 3.8 / (2.8 if nesterov else 1)
        x = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = torch.optim.SGD([x], lr=rate, momentum=0.9, nesterov=nesterov)
        for _ in range(1000):
            optimizer.zero_grad()
            (x.square() / 2).sum().backward()
            optimizer.step()
        ends.append(float(x.detach().abs()))
    assert ends[0] < 1e-3 < 1 < ends[1]
