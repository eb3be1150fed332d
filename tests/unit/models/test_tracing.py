"""Networks that compute in a ``forward`` of their own, cut wherever one tensor is alive: the units in a row give the
bits of the network, in both modes, and have its state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import ConvNeXt, DenseNet, MaxVit, RegNet, SwinTransformer, VisionTransformer
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import Bottleneck, ResNet

from bllpipe.errors import ConfigError
from bllpipe.models.stretches import plan_network
from bllpipe.models.units import Segment
from tests.support.networks import forwards

CLASSES = 5


def segments(network: nn.Module, shape: Sequence[int]) -> list[Segment]:
    """Every unit of a copy of the network, as a block of its own."""
    return [Segment([unit], seed=0) for unit in plan_network(network, shape, "the model is").units(deepcopy(network))]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def in_a_row(row: Sequence[nn.Module], x: Tensor, training: bool) -> Tensor:
    """The scores of the blocks with the random numbers of seed 3."""
    torch.manual_seed(3)
    for block in row:
        x = block.train(training)(x)
    return x


def check_same(network: nn.Module, shape: Sequence[int], least: int) -> list[Segment]:
    """Names, scores in both modes, gradients and the state after training are those of the network, to the last bit."""
    row = segments(network, shape)
    assert len(row) > least
    x = torch.randn(2, *shape)
    for training in (False, True):
        expected = in_a_row([network], x, training)
        scores = in_a_row(row, x, training)
        assert torch.equal(scores, expected)
    expected.square().sum().backward()
    scores.square().sum().backward()
    gradients = {name: p.grad for segment in row for name, p in segment.named_parameters()}
    for name, parameter in network.named_parameters():
        same = parameter.grad is gradients[name] is None or torch.equal(parameter.grad, gradients[name])  # type: ignore[arg-type]
        assert same, name
    merged = {name: value for segment in row for name, value in segment.state_dict().items()}
    assert sum(len(segment.state_dict()) for segment in row) == len(merged), "no tensor is in two units"
    fresh = deepcopy(network)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    fresh.load_state_dict(merged, strict=True)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in fresh.state_dict().items())
    return row


def _vgg() -> Any:
    network = models.VGG(models.vgg.make_layers([8, "M", 16], batch_norm=True), CLASSES, init_weights=False)
    network.classifier = nn.Sequential(nn.Linear(16 * 49, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, CLASSES))
    return network


def _vit() -> Any:
    return VisionTransformer(16, 8, 3, 2, 16, 32, dropout=0.1, num_classes=CLASSES)


def _swin() -> Any:
    return SwinTransformer([4, 4], 8, [2, 1], [2, 4], [2, 2], stochastic_depth_prob=0.3, num_classes=CLASSES)


def _convnext() -> Any:
    layers = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 1)]
    return ConvNeXt(layers, stochastic_depth_prob=0.3, num_classes=CLASSES)


def _maxvit() -> Any:
    return MaxVit((16, 16), 8, 2, [8, 16], [1, 1], 4, 0.3, num_classes=CLASSES)


def _regnet() -> Any:
    return RegNet(BlockParams([1, 2], [16, 32], [8, 8], [1, 1], [2, 2], se_ratio=0.25), CLASSES)


# least number of places; small versions of the classes of torchvision, or its own networks where there are none
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet": (lambda: ResNet(Bottleneck, [2, 1, 1, 1], CLASSES, width_per_group=8), 32, 15),
    "vgg": (_vgg, 32, 12),
    "densenet": (lambda: DenseNet(4, (2, 2), 8, drop_rate=0.2, num_classes=CLASSES), 32, 8),
    "convnext": (_convnext, 16, 15),
    "efficientnet": (lambda: models.efficientnet_b0(num_classes=CLASSES), 32, 70),
    "vit": (_vit, 16, 8),
    "swin": (_swin, 16, 15),
    "mobilenet_v3": (lambda: models.mobilenet_v3_small(num_classes=CLASSES), 32, 50),
    "regnet": (_regnet, 32, 10),
    "googlenet": (
        lambda: models.googlenet(num_classes=CLASSES, aux_logits=False, init_weights=False),
        32,
        20,
    ),
    "inception": (
        lambda: models.inception_v3(num_classes=CLASSES, aux_logits=False, init_weights=False),
        75,
        25,
    ),
    "maxvit": (_maxvit, 16, 20),
}
# arguments, size of the images, least number of places
TIMM: dict[str, tuple[dict[str, Any], int, int]] = {
    "resnet26d": ({}, 32, 25),
    "vit_tiny_patch16_224": ({"img_size": 32, "drop_path_rate": 0.1, "depth": 4}, 32, 15),
    "convnext_atto": ({"depths": (1, 1, 1, 1), "drop_path_rate": 0.2}, 32, 15),
    "efficientnet_lite0": ({}, 32, 60),
    "mixer_s32_224": ({"img_size": 64, "drop_rate": 0.1}, 64, 20),
    "swin_tiny_patch4_window7_224": ({"img_size": 28, "depths": (1, 1), "num_heads": (3, 6)}, 28, 8),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_torchvision(family: str) -> None:
    build, size, least = FAMILIES[family]
    check_same(build(), (3, size, size), least)


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed (pip install 'bllpipe[timm]')")
@pytest.mark.parametrize("name", TIMM)
def test_a_family_of_timm(name: str) -> None:
    import timm

    args, size, least = TIMM[name]
    network = timm.create_model(name, num_classes=CLASSES, in_chans=1, **args)
    check_same(network, (1, size, size), least)


def test_what_a_forward_uses_directly() -> None:
    row = check_same(forwards.Tokens(CLASSES), (3, 8, 8), 6)
    names = [segment.last_unit for segment in row]
    assert names[-1] == "head" and {"patches", "layers.0", "layers.1", "layers.2", "norm"} <= set(names)
    (third,) = (segment for segment in row if segment.last_unit == "layers.1")
    assert sorted(third.state_dict()) == ["layers.1.inner.bias", "layers.1.inner.weight", "layers.1.scale"]
    assert "unread" in row[-1].state_dict()


def test_channels_are_where_heads_read_them() -> None:
    row = check_same(forwards.ChannelsLast(CLASSES), (3, 16, 16), 5)
    x, shapes = torch.randn(2, 3, 16, 16), {}
    for segment in row:
        x = segment.eval()(x).contiguous()  # as a message
        shapes[segment.last_unit] = list(x.shape[1:])
    assert shapes["norm"] == [8, 4, 4] and shapes["mix"] == [12, 4, 4] and shapes["positions"] == [16, 6]


def test_a_module_that_cannot_be_traced_stays_whole() -> None:
    row = check_same(forwards.Gated(), (6,), 1)
    assert [segment.last_unit for segment in row] == ["stem", "gate", "head"]


def test_torch_export_where_tracing_fails() -> None:
    row = check_same(forwards.Sized(), (3, 8, 8), 3)
    assert [segment.last_unit for segment in row][:3] == ["stem", "norm", "relu"]


def test_a_buffer_that_changes_in_training() -> None:
    check_same(forwards.Running(), (6,), 0)


def test_a_layer_without_parameters_is_in_every_block_its_own() -> None:
    network = forwards.SharedDropout()
    row = check_same(network, (6,), 5)
    units = plan_network(network, (6,), "the model is").units(network)
    first, second = Segment(units[:3], seed=0), Segment(units[3:], seed=0)
    first.train()
    second.eval()
    assert first.get_submodule("drop").training and not second.get_submodule("drop").training
    assert first.get_submodule("first") is network.first, "modules with parameters are the network's own"
    assert len(row) == 7


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            forwards.Gated(outside=True),
            "forward neither torch.fx nor torch.export can follow|cannot be traced: symboli",
        ),
        (
            forwards.Skipping(),
            r"no place has one tensor alive alone: after first, where the fewest are, it is x \[6\],",
        ),
        (forwards.Tied(), "reads first.weight, second.weight before and after every place where one tensor"),
        (forwards.Returning("dict"), "returns a dict in training mode; expected class scores .*aux_logits=false"),
        (forwards.Returning("tuple"), "returns a tuple in training mode"),
        (forwards.TwoInputs(), "whose forward takes images, sizes; expected one input, the images; wrap it"),
        (
            forwards.Drawing(),
            "Drawing, whose forward draws random numbers of Python; expected a forward that does the same at every",
        ),
        (forwards.StaysFrozen(), r"whose train\(True\) leaves norm in the other mode"),
        (forwards.Counting(), "whose forward assigns Counting.last; expected state in parameters and buffers"),
        (
            forwards.Uncopied(),
            "Uncopied, which cannot be copied: cannot pickle '_thread.lock' object; expected",
        ),
        (
            forwards.NamedAsBlocks(),
            "a module or tensor with the name unit_ends, which blocks use themselves; use",
        ),
        (
            torch.compile(nn.Sequential(nn.Linear(6, 3)), backend="eager"),
            "OptimizedModule, which torch has compiled, so its operations cannot be divided; use the",
        ),
        (
            forwards.InPlace().double(),
            r"cannot take images of \[6\]: .*; use parameters of float32, .* torch.float64: model.float\(\)$",
        ),
        (nn.Identity(), "no place between two of its operations where one tensor"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_refused(network: nn.Module, message: str) -> None:
    before = {name: dict(vars(module)) for name, module in network.named_modules()}
    with pytest.raises(ConfigError, match=message):
        plan_network(network, (6,), "the model is")
    for name, module in network.named_modules():
        assert vars(module).keys() == before[name].keys() and not isinstance(
            getattr(module, "last", None), torch.fx.Proxy
        )


def test_hooks_and_sizes_that_do_not_fit() -> None:
    network = forwards.Skipping()
    network.register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(ConfigError, match="Skipping, which has hooks of its own, which a cut would drop; remove them"):
        plan_network(network, (6,), "the model is")
    with pytest.raises(ConfigError, match=r"VisionTransformer, which cannot take images of \[3, 20, 20\]: Wrong image"):
        plan_network(_vit(), (3, 20, 20), "the model is")
    with pytest.raises(ConfigError, match="GoogLeNet, which returns a .* in training mode; .*aux_logits=false"):
        plan_network(models.googlenet(init_weights=False), (3, 96, 96), "the model is")


def test_views_keep_their_strides() -> None:
    """A copy in another order gave other bits in the norm, for which the network was refused."""
    check_same(forwards.Rearranged(), (3, 8, 8), 4)


def test_autocast_in_a_forward_is_refused() -> None:
    """torch.fx drops it without a word; torch.export keeps it, and its code of one mode does not fit the other."""
    with pytest.raises(ConfigError, match="InHalf, whose traced operations give other scores than its fo") as caught:
        plan_network(forwards.InHalf(), (6,), "the model is")
    assert "InHalf, whose traced operations cannot be carried out: forward() missing" in str(caught.value.__cause__)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_module_that_is_scripted_is_refused() -> None:
    network = forwards.InPlace()
    network.add_module("second", torch.jit.script(network.second))
    with pytest.raises(ConfigError, match=r"InPlace, which torch has compiled \(second\), so its operations"):
        plan_network(network, (6,), "the model is")


def test_a_network_may_change_its_images() -> None:
    network = forwards.InPlace()
    x = torch.randn(4, 6)
    assert torch.equal(in_a_row(segments(network, (6,)), x.clone(), False), network(x.clone()))


def test_hooks_before_the_backward_pass_stay() -> None:
    """They were dropped without a word: such a module was divided."""
    network = forwards.InPlace()
    network.second.register_full_backward_pre_hook(lambda module, gradients: (torch.zeros(4, 8),))
    row = segments(network, (6,))
    x = torch.randn(4, 6)
    in_a_row(row, x, True).sum().backward()
    found = {name: p.grad for segment in row for name, p in segment.named_parameters() if p.grad is not None}
    assert not found["second.weight"].any() and found["head.weight"].any()
    network.register_full_backward_pre_hook(lambda module, gradients: None)
    with pytest.raises(ConfigError, match="InPlace, which has hooks of its own"):
        plan_network(network, (6,), "the model is")


def test_a_module_with_hooks_runs_them() -> None:
    network, seen = forwards.Tokens(CLASSES, rate=0.0), list[tuple[int, ...]]()
    network.layers[1].register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    row = check_same(network, (3, 8, 8), 6)
    assert seen and all(shape[1:] == (5, 8) for shape in seen)
    assert "layers.1" in [segment.last_unit for segment in row]
