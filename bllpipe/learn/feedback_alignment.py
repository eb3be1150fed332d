"""Feedback alignment: the backward pass of an end-to-end network through weights that are not those of its forward
pass.

  fa    fixed random weights, uniform Kaiming (Lillicrap et al. 2014; section 3 of the paper)
  usf   the signs of the true weights, all of one size (Liao, Leibo & Poggio 2016: uniform sign-concordant feedback)
  dfa   the gradient of the class scores goes to every unit directly, through a fixed random matrix (Nokland 2016);
        within a unit it is backpropagated

In all of them the gradient of a weight is exact for the incoming gradient, and normalisations stay as they are.

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
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, feedback_weight: Tensor, geometry: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight, feedback_weight)
        ctx.geometry, ctx.bias_sizes = geometry, None if bias is None else list(bias.shape)
        return conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight, feedback_weight) = gradients, ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            grad_x = _convolution_backward(ctx, gradient, x, feedback_weight, [True, False, False])[0].to(x.dtype)
        if needs_weight or needs_bias:
            results = _convolution_backward(ctx, gradient, x, weight, [False, needs_weight, needs_bias])
            grad_weight, grad_bias = (None if each is None else each.to(weight.dtype) for each in results[1:])
        return grad_x, grad_weight, grad_bias, None, None


class LinearAligned(torch.autograd.Function):
    """linear(x, weight) whose gradient with respect to x is taken with ``feedback_weight`` instead; x [..., I]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, feedback_weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, feedback_weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight, feedback_weight) = gradients, ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        gradient_NO, x_NI = gradient.flatten(0, -2), x.flatten(0, -2).to(gradient.dtype)
        grad_x = (gradient @ feedback_weight.to(gradient.dtype)).to(x.dtype) if needs_x else None
        grad_weight = (gradient_NO.T @ x_NI).to(weight.dtype) if needs_weight else None
        grad_bias = gradient_NO.sum(dim=0).to(weight.dtype) if needs_bias else None
        return grad_x, grad_weight, grad_bias, None


def _convolution_backward(
    ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, mask: list[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, those of ``mask``, in the dtype of ``gradient``."""
    stride, padding, dilation, groups = ctx.geometry
    x, weight = x.to(gradient.dtype), weight.to(gradient.dtype)
    return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]  # torch.ops is untyped
        gradient, x, weight, ctx.bias_sizes, stride, padding, dilation, False, [0, 0], groups, mask
    )


class Aligned(nn.Module):
    """A convolution or linear layer with the parameters, and the names of parameters, of ``layer``.

    With ``feedback_weight`` None gradients are propagated through the signs of the weights.
    """

    feedback_weight: Tensor | None

    def __init__(self, layer: nn.Conv2d | nn.Linear, feedback_weight: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        is_linear = isinstance(layer, nn.Linear)
        self.geometry = None if is_linear else (layer.stride, layer.padding, layer.dilation, layer.groups)
        self.register_buffer("feedback_weight", feedback_weight)

    def forward(self, x: Tensor) -> Tensor:
        feedback = concordant(self.weight.detach()) if self.feedback_weight is None else self.feedback_weight
        arguments = x, self.weight, self.bias, feedback
        if self.geometry is None:
            return LinearAligned.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]
        return ConvolveAligned.apply(*arguments, self.geometry)  # type: ignore[no-any-return, no-untyped-call]


def kaiming_uniform(shape: torch.Size, fan: int, generator: torch.Generator) -> Tensor:
    """Uniform with variance 2 / fan (He et al. 2015): the backward pass keeps the size of gradients."""
    bound = sqrt(6 / fan)
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def concordant(weight: Tensor) -> Tensor:
    """The signs of ``weight`` [O, I, ...], scaled to variance 2 / fan."""
    return weight.sign() * sqrt(2 / _fan_out(weight))


def _fan_out(weight: Tensor) -> int:
    return prod(weight.shape) // weight.shape[1]


def fixed_random(segment: Segment, num_classes: int, seed: int) -> None:
    """fa: every convolution and linear layer becomes an ``Aligned`` with a random ``feedback_weight``."""
    for path, layer in _alignable_layers(segment):
        generator = stream(seed, "feedback weights", path)
        weight = kaiming_uniform(layer.weight.shape, _fan_out(layer.weight), generator)
        segment.set_submodule(path, Aligned(layer, weight.to(layer.weight.device)))


def sign_symmetric(segment: Segment, num_classes: int, seed: int) -> None:
    """usf: every convolution and linear layer becomes an ``Aligned`` without a ``feedback_weight``."""
    for path, layer in _alignable_layers(segment):
        segment.set_submodule(path, Aligned(layer, None))


def _alignable_layers(segment: Segment) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """Convolutions and linear layers by path; ConfigError for a convolution with another padding, and
    for a network that has no layers."""
    if not segment.has_layers:
        raise ConfigError(
            f"the block that ends with {segment.last_unit} was traced by torch.export, which keeps no layers whose "
            f"feedback could be replaced; use --set method=bp, or a forward that torch.fx can trace"
        )
    segment.detach_structure()
    layers = [(path, each) for path, each in segment.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    for path, layer in layers:
        if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            raise ConfigError(
                f"{path}: feedback alignment expected a convolution padded with zeros by a number of pixels, got "
                f"padding_mode {layer.padding_mode!r} and padding {layer.padding!r}; use padding_mode='zeros' and a "
                f"number, or --set method=bp"
            )
    return layers


class OutputGradient:
    """e = dL / d scores [B, K] of the batch whose backward pass is running."""

    def __init__(self) -> None:
        self.gradient_BK: Tensor | None = None


class SaveGradient(torch.autograd.Function):
    """The identity; stores the incoming gradient in ``output``."""

    @staticmethod
    def forward(ctx: Any, scores_BK: Tensor, output: OutputGradient) -> Tensor:
        ctx.output = output
        return scores_BK.view_as(scores_BK)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.output.gradient_BK = gradients[0]
        return gradients[0], None


class ReplaceGradient(torch.autograd.Function):
    """The identity; its backward pass returns e B in place of the incoming gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, feedback_weight_KF: Tensor, output: OutputGradient) -> Tensor:
        ctx.save_for_backward(feedback_weight_KF)
        ctx.output = output
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (incoming,), (feedback_weight_KF,) = gradients, ctx.saved_tensors
        assert ctx.output.gradient_BK is not None, "the backward pass begins at the class scores"
        gradient = ctx.output.gradient_BK.to(feedback_weight_KF.dtype) @ feedback_weight_KF
        return gradient.view_as(incoming).to(incoming.dtype), None, None


def direct(segment: Segment, num_classes: int, seed: int) -> None:
    """dfa: a ``feedback_weight`` for every unit but the last, drawn at the first batch, which shows its size.

    Hooks and feedback weights belong to the segment, under the names that they would have in the modules: modules of
    a script are used in more than one run.
    """
    output = OutputGradient()
    *paths, last = segment.unit_ends
    for path in paths:
        generator = stream(seed, "feedback weights", path)
        segment.output_hooks[path] = _replace_gradient(segment, path, generator, num_classes, output)
    segment.output_hooks[last] = lambda scores_BK: SaveGradient.apply(scores_BK, output)  # type: ignore[no-untyped-call]  # untyped in torch


def _replace_gradient(
    segment: Segment, path: str, generator: torch.Generator, num_classes: int, output: OutputGradient
) -> Callable[[Tensor], Tensor]:
    buffers, name = segment._buffers, f"{path}.feedback_weight"  # register_buffer takes no name with a dot

    def hook(x: Tensor) -> Tensor:
        if name not in buffers:
            features = prod(x.shape[1:])
            buffers[name] = kaiming_uniform(torch.Size([num_classes, features]), features, generator).to(x.device)
        return ReplaceGradient.apply(x, buffers[name], output)  # type: ignore[no-any-return, no-untyped-call]

    return hook


PROPAGATIONS: dict[str, Callable[[Segment, int, int], None]] = {
    "fa": fixed_random,
    "usf": sign_symmetric,
    "dfa": direct,
}


def propagate(segment: Segment, method: str, num_classes: int, seed: int) -> None:
    """Changes the backward pass of ``segment`` for fa, usf and dfa, before its first batch; every other ``method``
    propagates gradients through the true weights, as autograd does."""
    if method in PROPAGATIONS:
        PROPAGATIONS[method](segment, num_classes, seed)
