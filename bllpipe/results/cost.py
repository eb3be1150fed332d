"""What a block costs: operations for one image, and parameters; its local head and what only training needs apart.

FLOPs are those of convolutions and matrix products, counted while one image passes; one multiply-accumulate is two.
Normalisations, activations and pools are not counted, as is usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bllpipe.learn.block import Block


@dataclass(frozen=True)
class BlockCost:
    """FLOPs for one image and parameters of a block's segment and of its head; the last block's head has none of its
    own. ``training_only`` are parameters of an objective that has some."""

    flops: int
    head_flops: int
    parameters: int
    head_parameters: int
    training_only: int

    @property
    def head_flops_share(self) -> float:
        return share(self.head_flops, self.flops + self.head_flops)

    @property
    def head_parameters_share(self) -> float:
        return share(self.head_parameters, self.parameters + self.head_parameters)


def block_costs(blocks: Sequence[Block], image_shape: Sequence[int]) -> list[BlockCost]:
    """The costs of every block for an image of ``image_shape`` [C, H, W]."""
    costs = []
    x = torch.zeros(1, *image_shape, device=blocks[0].learner.device)
    for block in blocks:
        alpha, flops = counted(block.infer, x)
        x = alpha.float()
        head_flops = counted(block.head.eval(), x)[1]
        objective = block.objective.parameters() if isinstance(block.objective, nn.Module) else ()
        sizes = (_size(block.segment.parameters()), _size(block.head.parameters()), _size(objective))
        costs.append(BlockCost(flops, head_flops, *sizes))
    return costs


@torch.no_grad()
def counted(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, int]:
    """``function(x)`` and the FLOPs that it took."""
    with FlopCounterMode(display=False) as counter:
        result = function(x)
    return result, int(counter.get_total_flops())


def share(part: float, whole: float) -> float:
    """``part`` of ``whole``; 0 of nothing."""
    return part / whole if whole else 0.0


def _size(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
