"""Feedback alignment: the backward pass of an end-to-end network through weights that are not those of its forward
pass.

  fa    fixed random weights, uniform Kaiming (Lillicrap et al. 2014; section 3 of the paper)
  usf   the signs of the true weights, all of one size (Liao, Leibo & Poggio 2016: uniform sign-concordant feedback)
  dfa   the gradient of the class scores goes to every unit directly, through a fixed random matrix (Nokland 2016);
        within a unit it is backpropagated

In all of them the gradient of a weight is exact for the incoming gradient, and normalisations are left alone.

Shapes: B images, C channels, O outputs, I inputs, F features of a unit's output, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from bllpipe.errors import ConfigError
from bllpipe.models.units import Segment
from bllpipe.utils.tensors import stream


class ConvolveAligned(torch.autograd.Function):
    """conv2d(x, weight) whose gradient with respect to x is taken with ``feedback_weight`` instead."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, feedback_weight: Tensor, how: Any) -> Tensor:
        ctx.save_for_backward(x, weight, feedback_weight)
        ctx.how, ctx.bias_sizes = how, None if bias is None else list(bias.shape)
        return conv2d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (error,), (x, weight, feedback_weight) = gradients, ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        to_x = to_weight = to_bias = None
        if wants_x:
            to_x = _convolution_backward(ctx, error, x, feedback_weight, [True, False, False])[0].to(x.dtype)
        if wants_weight or wants_bias:
            found = _convolution_backward(ctx, error, x, weight, [False, wants_weight, wants_bias])
            to_weight, to_bias = (None if each is None else each.to(weight.dtype) for each in found[1:])
        return to_x, to_weight, to_bias, None, None


class LinearAligned(torch.autograd.Function):
    """linear(x, weight) whose gradient with respect to x is taken with ``feedback_weight`` instead; x [..., I]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, feedback_weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, feedback_weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (error,), (x, weight, feedback_weight) = gradients, ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        error_NO, x_NI = error.flatten(0, -2), x.flatten(0, -2).to(error.dtype)
        to_x = (error @ feedback_weight.to(error.dtype)).to(x.dtype) if wants_x else None
        to_weight = (error_NO.T @ x_NI).to(weight.dtype) if wants_weight else None
        to_bias = error_NO.sum(dim=0).to(weight.dtype) if wants_bias else None
        return to_x, to_weight, to_bias, None


def _convolution_backward(
    ctx: Any, error: Tensor, x: Tensor, weight: Tensor, mask: list[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, those of ``mask``, in the number format of ``error``."""
    stride, padding, dilation, groups = ctx.how
    x, weight = x.to(error.dtype), weight.to(error.dtype)
    return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]  # torch.ops is untyped
        error, x, weight, ctx.bias_sizes, stride, padding, dilation, False, [0, 0], groups, mask
    )


class Aligned(nn.Module):
    """A convolution or linear layer with the parameters, and the names of parameters, of ``layer``.

    With ``feedback_weight`` None the errors travel through the signs of the weights.
    """

    feedback_weight: Tensor | None

    def __init__(self, layer: nn.Conv2d | nn.Linear, feedback_weight: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        is_linear = isinstance(layer, nn.Linear)
        self.how = None if is_linear else (layer.stride, layer.padding, layer.dilation, layer.groups)
        self.register_buffer("feedback_weight", feedback_weight)

    def forward(self, x: Tensor) -> Tensor:
        back = concordant(self.weight.detach()) if self.feedback_weight is None else self.feedback_weight
        if self.how is None:
            return LinearAligned.apply(x, self.weight, self.bias, back)  # type: ignore[no-any-return, no-untyped-call]
        return ConvolveAligned.apply(x, self.weight, self.bias, back, self.how)  # type: ignore[no-any-return, no-untyped-call]


def kaiming_uniform(shape: torch.Size, fan: int, generator: torch.Generator) -> Tensor:
    """Uniform with variance 2 / fan (He et al. 2015): errors keep their size on the way back."""
    bound = sqrt(6 / fan)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def concordant(weight: Tensor) -> Tensor:
    """The signs of ``weight`` [O, I, ...], scaled to variance 2 / fan."""
    return weight.sign() * sqrt(2 / _fan_out(weight))


def _fan_out(weight: Tensor) -> int:
    return prod(weight.shape) // weight.shape[1]


def _align_layers(segment: Segment, seed: int, random: bool) -> None:
    """Puts an ``Aligned`` in the place of every convolution and linear layer."""
    for path, layer in list(segment.named_modules()):
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        _check_layer(path, layer)
        draws = stream(seed, "feedback weights", path)
        drawn = kaiming_uniform(layer.weight.shape, _fan_out(layer.weight), draws) if random else None
        segment.set_submodule(path, Aligned(layer, None if drawn is None else drawn.to(layer.weight.device)))


def _check_layer(path: str, layer: nn.Conv2d | nn.Linear) -> None:
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        raise ConfigError(
            f"{path} pads with {layer.padding_mode!r} by {layer.padding!r}; feedback alignment needs convolutions that "
            f"pad with zeros by a number of pixels"
        )


def fixed_random(segment: Segment, num_classes: int, seed: int) -> None:
    """fa: a ``feedback_weight`` beside every weight."""
    _align_layers(segment, seed, random=True)


def sign_symmetric(segment: Segment, num_classes: int, seed: int) -> None:
    """usf: nothing to remember."""
    _align_layers(segment, seed, random=False)


class OutputGradient:
    """e = dL / d scores [B, K] of the batch whose backward pass is under way."""

    def __init__(self) -> None:
        self.error_BK: Tensor | None = None


class SaveGradient(torch.autograd.Function):
    """The identity; keeps the error that passes."""

    @staticmethod
    def forward(ctx: Any, scores_BK: Tensor, output: OutputGradient) -> Tensor:
        ctx.output = output
        return scores_BK.view_as(scores_BK)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.output.error_BK = gradients[0]
        return gradients[0], None


class ReplaceGradient(torch.autograd.Function):
    """The identity; what comes back is e B, not the error that arrives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, feedback_weight_KF: Tensor, output: OutputGradient) -> Tensor:
        ctx.save_for_backward(feedback_weight_KF)
        ctx.output = output
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (arriving,), (feedback_weight_KF,) = gradients, ctx.saved_tensors
        assert ctx.output.error_BK is not None, "the class scores come last, and so first on the way back"
        error = ctx.output.error_BK.to(feedback_weight_KF.dtype) @ feedback_weight_KF
        return error.view_as(arriving).to(arriving.dtype), None, None


def direct(segment: Segment, num_classes: int, seed: int) -> None:
    """dfa: a ``feedback_weight`` for every unit but the last, drawn when the first batch shows how large it must be."""
    output = OutputGradient()
    *units, last = segment.unit_ends
    for path in units:
        segment.get_submodule(path).register_forward_hook(
            _detour(stream(seed, "feedback weights", path), num_classes, output)
        )
    segment.get_submodule(last).register_forward_hook(lambda module, inputs, scores_BK: _tap(scores_BK, output))


def _tap(scores_BK: Tensor, output: OutputGradient) -> Tensor:
    return SaveGradient.apply(scores_BK, output)  # type: ignore[no-any-return, no-untyped-call]  # untyped in torch


def _detour(draws: torch.Generator, num_classes: int, output: OutputGradient) -> Any:
    def hook(module: nn.Module, inputs: Any, x: Tensor) -> Tensor:
        if not hasattr(module, "feedback_weight"):
            features = prod(x.shape[1:])
            drawn = kaiming_uniform(torch.Size([num_classes, features]), features, draws)
            module.register_buffer("feedback_weight", drawn.to(x.device))
        return ReplaceGradient.apply(x, module.feedback_weight, output)  # type: ignore[no-any-return, no-untyped-call]

    return hook


def backpropagation(segment: Segment, num_classes: int, seed: int) -> None:
    """bp, and every block that learns from its own loss: through the true weights, as autograd has it."""


PROPAGATIONS: dict[str, Callable[[Segment, int, int], None]] = {
    "fa": fixed_random,
    "usf": sign_symmetric,
    "dfa": direct,
}


def propagate(segment: Segment, method: str, num_classes: int, seed: int) -> None:
    """Changes the way back through ``segment`` as ``method`` has it; to be called before its first batch."""
    PROPAGATIONS.get(method, backpropagation)(segment, num_classes, seed)
