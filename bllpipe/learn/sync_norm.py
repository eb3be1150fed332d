"""BatchNorm over the images of several processes: torch's SyncBatchNorm refuses CPUs.

Mean and variance are computed in two passes over the batch, as a sum of squares would lose digits, each with one sum
over the processes; the gradient of a sum over processes is the sum of their gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bllpipe.learn.memory_format import detach_structure, without_autocast
from bllpipe.utils.tensors import full_precision

AddUp = Callable[[Tensor], Tensor]  # the sum of a tensor over all processes


def synchronize_norms(module: nn.Module, add_up: AddUp) -> None:
    """From now on every BatchNorm in ``module`` normalises, in training, over the images of all processes, which call
    ``add_up`` alike. Names of parameters and a script's own modules do not change."""
    detach_structure(module)
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            vars(part)["forward"] = _synchronized(part, part.forward, add_up)  # of this instance, not of its class


def _synchronized(norm: _BatchNorm, local: Callable[[Tensor], Tensor], add_up: AddUp) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if not norm.training:
            return local(x)
        with without_autocast(x.device):
            return _normalize(norm, full_precision(x), add_up).to(x.dtype)

    return forward


def _normalize(norm: _BatchNorm, x: Tensor, add_up: AddUp) -> Tensor:
    """x [B, C, ...] with mean 0 and variance 1 in every channel; moves the running statistics as torch does."""
    over = [dim for dim in range(x.dim()) if dim != 1]
    shape = [-1 if dim == 1 else 1 for dim in range(x.dim())]
    sums_C1 = torch.cat([x.sum(dim=over), x.new_full((1,), x.numel() / x.shape[1])])
    total_C1 = _over_all(sums_C1, add_up)
    number = total_C1[-1].detach()
    mean_C = total_C1[:-1] / number
    centred = x - mean_C.view(shape)
    variance_C = _over_all(centred.square().sum(dim=over), add_up) / number
    with torch.no_grad():
        _move(norm, mean_C, variance_C * number / (number - 1))
    normal = centred * (variance_C + norm.eps).rsqrt().view(shape)
    return normal if norm.weight is None else normal * norm.weight.view(shape) + norm.bias.view(shape)


def _move(norm: _BatchNorm, mean_C: Tensor, variance_C: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean_C, momentum)
    norm.running_var.lerp_(variance_C, momentum)


def _over_all(x: Tensor, add_up: AddUp) -> Tensor:
    return _AddUp.apply(x, add_up)  # type: ignore[no-any-return,no-untyped-call]  # torch leaves it untyped


class _AddUp(torch.autograd.Function):
    """The sum over all processes, each of which has a part of the loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, add_up: AddUp) -> Tensor:
        ctx.add_up = add_up
        return add_up(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.add_up(gradients[0]), None
