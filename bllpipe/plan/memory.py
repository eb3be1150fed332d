"""How much memory a unit needs: counted, not measured, so that it holds on every device.

What the allocator leaves unused and what convolutions borrow for a moment comes on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from bllpipe.learn.block import Block
from bllpipe.learn.optimizers import Optimizer
from bllpipe.ports import Target


def unit_bytes(block: Block, optimizer: Optimizer, x: Tensor) -> int:
    """Parameters, buffers, gradients, the optimiser's state, what backward keeps and the output, but not the input
    ``x``: that is the output of the unit before."""
    given = x.clone()
    output: list[Tensor] = []
    kept = kept_storages(lambda: output.append(block.forward(given)))
    kept |= storages(output)
    weights = storages(block.segment.state_dict(keep_vars=True).values())
    activations = {pointer: size for pointer, size in kept.items() if pointer not in weights | storages([given])}
    return sum(activations.values()) + sum(weights.values()) + training_bytes(optimizer)


def head_bytes(block: Block, of_unit: Optimizer, alpha: Tensor, target: Target) -> int:
    """The same for head and objective of ``block``, whose units' optimiser is ``of_unit``."""
    given = alpha.detach().clone().requires_grad_()
    modules = [part for part in (block.head, block.objective) if isinstance(part, torch.nn.Module)]
    weights = storages(value for part in modules for value in part.state_dict(keep_vars=True).values())
    kept = kept_storages(lambda: block.update(given, target, step=0))
    kept = {pointer: size for pointer, size in kept.items() if pointer not in weights | storages([given])}
    # ... and the gradient of alpha, which is there at the same time
    of_alpha = given.numel() * given.element_size()
    own = training_bytes(block.learner.optimizer) - training_bytes(of_unit)
    return sum(kept.values()) + sum(weights.values()) + of_alpha + own


def training_bytes(optimizer: Optimizer) -> int:
    """Gradients and the optimiser's state."""
    return sum(_bytes(value) for value in (*optimizer.parameters.values(), *optimizer.state.values()))


def kept_storages(forward: Callable[[], object]) -> dict[int, int]:
    """Identity and bytes of every piece of memory that ``forward`` keeps for its backward pass."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return storages(kept)


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Views of one piece of memory count once. Tensors without contents have no address, but torch's own identity."""
    found = [tensor.untyped_storage() for tensor in tensors]
    return {storage._cdata: storage.nbytes() for storage in found}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
