"""Feedback alignment against compositions that autograd differentiates itself."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, linear

from bllpipe.errors import ConfigError
from bllpipe.learn.feedback_alignment import (
    Aligned,
    concordant,
    fixed_random,
    kaiming_uniform,
    propagate,
    sign_symmetric,
)
from bllpipe.models.partition import cut
from bllpipe.models.resnet import resnet_units
from bllpipe.models.units import Segment, units_from_modules

Conv = dict[str, Any]
CONVOLUTIONS: list[Conv] = [
    {"padding": 1},
    {"stride": 2, "padding": 1, "bias": False},
    {"padding": 2, "dilation": 2},
    {"groups": 2, "stride": (2, 1), "bias": False},
]


def network(seed: int = 0, depth: str = "resnet18") -> Segment:
    return Segment(cut(resnet_units(depth, 4, "cifar", 3, 10), 1)[0], seed)


def gradients(segment: nn.Module, x: Tensor, label_B: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*segment.named_parameters(), strict=True)
    loss = cross_entropy(segment(x), label_B)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 10, (size,), generator=generator)


@pytest.mark.parametrize("how", CONVOLUTIONS, ids=str)
def test_a_convolution_equals_the_composition(how: Conv) -> None:
    """y = conv(x.detach(), W) + conv(x, B) - conv(x, B).detach(): values and all gradients."""
    layer = nn.Conv2d(4, 6, 3, **how).double()
    back = torch.randn_like(layer.weight)
    x = torch.randn(3, 4, 9, 8, dtype=torch.float64, requires_grad=True)
    rest: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
    forth = conv2d(x.detach(), layer.weight, layer.bias, *rest)
    expected = forth + conv2d(x, back, None, *rest) - conv2d(x, back, None, *rest).detach()
    found = Aligned(layer, back)(x)
    torch.testing.assert_close(found, expected)
    error = torch.randn_like(found)
    wanted = [x, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(found, wanted, error), torch.autograd.grad(expected, wanted, error), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_equals_the_composition(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(7, 4, bias=bias).double()
    back = torch.randn_like(layer.weight)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = linear(x.detach(), layer.weight, layer.bias) + linear(x, back) - linear(x, back).detach()
    found = Aligned(layer, back)(x)
    torch.testing.assert_close(found, expected)
    error, wanted = torch.randn_like(found), [x, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(found, wanted, error), torch.autograd.grad(expected, wanted, error), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("depth", ["resnet18", "resnet50"])
def test_with_the_true_weights_it_is_backpropagation(depth: str) -> None:
    plain, aligned = network(depth=depth), network(depth=depth)
    fixed_random(aligned, 10, seed=0)
    for layer in aligned.modules():
        if isinstance(layer, Aligned):
            assert layer.feedback_weight is not None
            layer.feedback_weight.copy_(layer.weight.detach())
    expected, found = gradients(plain, *batch()), gradients(aligned, *batch())
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("method", ["fa", "usf", "dfa"])
def test_only_the_backward_pass_differs(method: str) -> None:
    """The same scores; exact gradients behind the last error; others before it."""
    plain, changed = network(), network()
    propagate(changed, method, 10, seed=0)
    changed.eval(), plain.eval()
    x, label_B = batch()
    assert torch.equal(changed(x), plain(x))
    expected, found = gradients(plain, x, label_B), gradients(changed, x, label_B)
    torch.testing.assert_close(found["fc.weight"], expected["fc.weight"])
    assert not torch.allclose(found["conv1.weight"], expected["conv1.weight"], rtol=0.1)
    assert all(torch.isfinite(gradient).all() and gradient.any() for gradient in found.values())


def test_every_convolution_and_the_linear_layer_have_weights_of_their_own() -> None:
    segment = network()
    before = dict(segment.named_parameters())
    fixed_random(segment, 10, seed=0)
    assert dict(segment.named_parameters()).keys() == before.keys()
    assert not any(isinstance(module, nn.Conv2d | nn.Linear) for module in segment.modules())
    drawn = {name: value for name, value in segment.named_buffers() if name.endswith("feedback_weight")}
    assert drawn.keys() == {name.replace("weight", "feedback_weight") for name, p in before.items() if p.dim() > 1}
    assert all(value.shape == before[name.replace("feedback_", "")].shape for name, value in drawn.items())


def test_random_weights_are_uniform_kaiming_and_named_streams() -> None:
    drawn = kaiming_uniform(torch.Size([200, 300]), 50, torch.Generator().manual_seed(0))
    bound = (6 / 50) ** 0.5
    assert drawn.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert drawn.var().item() == pytest.approx(2 / 50, rel=0.02)
    one, same, other = network(), network(), network()
    for segment, seed in ((one, 0), (same, 0), (other, 1)):
        fixed_random(segment, 10, seed)
    name = "layer3.0.conv2.feedback_weight"
    assert torch.equal(one.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


def test_sign_symmetric_errors_travel_through_the_signs_of_the_present_weights() -> None:
    segment, twin = network(), network()
    sign_symmetric(segment, 10, seed=0)
    fixed_random(twin, 10, seed=0)
    with torch.no_grad():
        for module in (segment, twin):
            next(module.parameters()).add_(0.1)
        for layer in twin.modules():
            if isinstance(layer, Aligned) and layer.feedback_weight is not None:
                layer.feedback_weight.copy_(concordant(layer.weight))
    assert not any(name.endswith("feedback_weight") for name in segment.state_dict())
    for name, gradient in gradients(segment, *batch()).items():
        torch.testing.assert_close(gradient, gradients(twin, *batch())[name])


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, padding=1), nn.Linear(9, 6)], ids=repr)
def test_a_layer_under_bf16_computes_in_bf16_and_learns_in_fp32(layer: nn.Conv2d | nn.Linear) -> None:
    aligned = Aligned(layer, torch.randn_like(layer.weight))
    x = torch.randn(8, 4, 9, 9, requires_grad=True)
    exact = aligned(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = aligned(x)
    assert rounded.dtype is torch.bfloat16
    error, wanted = torch.randn_like(exact), [x, *layer.parameters()]
    for ours, fp32 in zip(
        torch.autograd.grad(rounded, wanted, error.bfloat16()), torch.autograd.grad(exact, wanted, error), strict=True
    ):
        assert ours.dtype is torch.float32
        assert (ours - fp32).norm() / fp32.norm() < 0.01


def bf16(segment: nn.Module, x: Tensor, label_B: Tensor) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return gradients(segment, x, label_B)


@pytest.mark.parametrize("method", ["bp", "fa", "usf", "dfa"])
def test_a_network_under_bf16_has_the_gradients_of_fp32_as_far_as_backpropagation_has(method: str) -> None:
    segment = network()
    propagate(segment, method, 10, seed=0)
    segment.eval()
    exact, rounded = gradients(segment, *batch()), bf16(segment, *batch())
    for name, gradient in exact.items():
        assert rounded[name].dtype is torch.float32
        assert torch.cosine_similarity(rounded[name].flatten(), gradient.flatten(), dim=0) > 0.9, name


def test_direct_feedback_gives_every_unit_the_output_error_through_its_own_matrix() -> None:
    """Against the chain rule by hand: two linear units, e = softmax - one-hot."""
    first, second = nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False)
    segment = Segment(units_from_modules({"0": first, "1": nn.Tanh(), "2": second}), seed=0)
    propagate(segment, "dfa", 3, seed=0)
    x_BI, label_B = torch.randn(6, 5), torch.randint(0, 3, (6,))
    scores_BK = segment(x_BI)
    cross_entropy(scores_BK, label_B).backward()
    error_BK = (scores_BK.softmax(1) - nn.functional.one_hot(label_B, 3)).detach() / 6
    state = segment.state_dict()
    torch.testing.assert_close(first.weight.grad, (error_BK @ state["0.feedback_weight"]).T @ x_BI)
    torch.testing.assert_close(second.weight.grad, error_BK.T @ (x_BI @ first.weight.T).tanh().detach())


def test_direct_feedback_weights_keep_the_size_of_the_error() -> None:
    segment = network()
    propagate(segment, "dfa", 10, seed=0)
    segment.eval()(batch()[0])
    drawn = {name: value for name, value in segment.named_buffers() if name.endswith("feedback_weight")}
    assert len(drawn) == 7 and all(value.shape[0] == 10 for value in drawn.values())
    for value in drawn.values():
        assert value.square().sum(dim=1).mean().item() == pytest.approx(2, rel=0.2)


def test_convolutions_that_cannot_be_aligned_are_refused() -> None:
    make: Callable[[], nn.Module] = lambda: nn.Conv2d(3, 3, 3, padding="same", padding_mode="reflect")  # noqa: E731
    segment = Segment(units_from_modules({"0": make()}), seed=0)
    with pytest.raises(ConfigError, match="0: feedback alignment expected .* got padding_mode 'reflect' .*; use"):
        fixed_random(segment, 10, seed=0)


def user_modules() -> list[nn.Module]:
    return [
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Flatten(1), nn.Linear(256, 10)),
    ]


@pytest.mark.parametrize("method", ["fa", "usf", "dfa"])
def test_a_second_run_on_the_same_modules_is_the_first_again_and_leaves_them_as_they_were(method: str) -> None:
    """Hooks and replaced layers used to stay in a script's own modules: the next run had them twice."""
    modules = user_modules()
    kinds = [[type(part) for part in module.modules()] for module in modules]
    names = [list(module.state_dict()) for module in modules]
    runs = []
    for _ in range(2):
        segment = Segment(units_from_modules({str(i): module for i, module in enumerate(modules)}), seed=0)
        propagate(segment, method, 10, seed=0)
        runs.append(gradients(segment.eval(), *batch()))
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(runs[1][name], gradient) for name, gradient in runs[0].items())
    assert [[type(part) for part in module.modules()] for module in modules] == kinds
    assert [list(module.state_dict()) for module in modules] == names
    assert not any(part._forward_hooks for module in modules for part in module.modules())


@pytest.mark.parametrize("method", ["fa", "usf", "dfa"])
def test_the_modules_of_a_script_are_what_is_trained(method: str) -> None:
    """The copies share parameters, buffers and hooks with them, also after a change of the dtype."""
    modules, outputs = user_modules(), list[Tensor]()
    modules[0].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    segment = Segment(units_from_modules({str(i): module for i, module in enumerate(modules)}), seed=0)
    propagate(segment, method, 10, seed=0)
    segment.double()
    x, label_B = batch()
    cross_entropy(segment(x.double()), label_B).backward()
    assert len(outputs) == 1
    assert all(p.grad is not None and p.dtype is torch.float64 for module in modules for p in module.parameters())
    norm = modules[0].get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    assert norm.running_mean.dtype is torch.float64 and norm.running_mean.any()


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    modules = user_modules()
    modules[0].lock = threading.Lock()  # type: ignore[assignment]  # an attribute like any other
    segment = Segment(units_from_modules({str(i): module for i, module in enumerate(modules)}), seed=0)
    with pytest.raises(ConfigError, match="module 0 of the model: expected a module that can be copied.*; use --set"):
        propagate(segment, "fa", 10, seed=0)
