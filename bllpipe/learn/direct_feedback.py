"""Direct feedback alignment (Nokland 2016): every unit but the last takes, in place of the error that comes back from
the unit behind it, the error of the class scores through a fixed random matrix of its own.

Within a unit the error is backpropagated. Shapes: B images, K classes, F features of a unit's output.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from bllpipe.learn.feedback_alignment import kaiming_uniform
from bllpipe.learn.units import Segment
from bllpipe.randomness import stream


class OutputError:
    """e = dL / d scores [B, K] of the batch whose backward pass is under way."""

    def __init__(self) -> None:
        self.error_BK: Tensor | None = None


class Tap(torch.autograd.Function):
    """The identity; keeps the error that passes."""

    @staticmethod
    def forward(ctx: Any, scores_BK: Tensor, output: OutputError) -> Tensor:
        ctx.output = output
        return scores_BK.view_as(scores_BK)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.output.error_BK = gradients[0]
        return gradients[0], None


class Detour(torch.autograd.Function):
    """The identity; what comes back is e B, not the error that arrives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, feedback_weight_KF: Tensor, output: OutputError) -> Tensor:
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
    output = OutputError()
    *units, last = segment.unit_ends
    for path in units:
        segment.get_submodule(path).register_forward_hook(
            _detour(stream(seed, "feedback weights", path), num_classes, output)
        )
    segment.get_submodule(last).register_forward_hook(lambda module, inputs, scores_BK: _tap(scores_BK, output))


def _tap(scores_BK: Tensor, output: OutputError) -> Tensor:
    return Tap.apply(scores_BK, output)  # type: ignore[no-any-return, no-untyped-call]  # untyped in torch


def _detour(draws: torch.Generator, num_classes: int, output: OutputError) -> Any:
    def hook(module: nn.Module, inputs: Any, x: Tensor) -> Tensor:
        if not hasattr(module, "feedback_weight"):
            features = prod(x.shape[1:])
            drawn = kaiming_uniform(torch.Size([num_classes, features]), features, draws)
            module.register_buffer("feedback_weight", drawn.to(x.device))
        return Detour.apply(x, module.feedback_weight, output)  # type: ignore[no-any-return, no-untyped-call]

    return hook
