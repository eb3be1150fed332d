"""BatchNorm by torch's own kernels, beside messages over NCCL.

cuDNN's kernel for the backward pass of channels-last maps wants all of a GPU's processors at once, and does not begin
while a kernel of NCCL waits on some of them for a message (pytorch/pytorch#80259). Such a wait is ordinary here:
receives are posted ahead. torch chooses the kernels of both passes in the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def without_cudnn(module: nn.Module) -> None:
    """From now on no BatchNorm in ``module`` uses cuDNN; convolutions do as ever."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            vars(part)["forward"] = _computed_without(part.forward)  # of this one, not of its class


def _computed_without(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def computed(x: Tensor) -> Tensor:
        before = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False
        try:
            return forward(x)
        finally:
            torch.backends.cudnn.enabled = before

    return computed
