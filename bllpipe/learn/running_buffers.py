"""The running mean and variance of BatchNorm, and other buffers that a forward pass moves, in a batch of shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bllpipe.utils.tree_sum import Sums

MOVE = "move."  # in front of the names of buffers


class RunningBuffers:
    """The buffers of ``modules``, each with the prefix of its names.

    Every shard of a batch moves them from their values before the step, and the step moves them by the mean over the
    shards: once, and in no order. Counters keep the value after the last shard, as all shards count alike.

    With one shard, the forward pass itself has moved them, and nothing is left to do.
    """

    def __init__(self, modules: Sequence[tuple[str, nn.Module]], num_shards: int) -> None:
        self._modules, self.num_shards = modules if num_shards > 1 else (), num_shards
        self._before: dict[str, Tensor] = {}

    def _buffers(self) -> dict[str, Tensor]:
        """As they are now: a module may assign new ones."""
        return {
            f"{MOVE}{prefix}.{name}": buffer
            for prefix, module in self._modules
            for name, buffer in module.named_buffers()
        }

    @torch.no_grad()
    def begin_shard(self) -> None:
        """Gives the buffers their values before the step."""
        buffers = self._buffers()
        if not self._before:
            self._before = {name: buffer.clone() for name, buffer in buffers.items()}
        for name, value in self._before.items():
            buffers[name].copy_(value)

    @torch.no_grad()
    def moves(self) -> Sums:
        """How far the shard has moved each buffer."""
        before = self._before
        return {name: now - before[name] for name, now in self._buffers().items() if now.is_floating_point()}

    @torch.no_grad()
    def move(self, total: Mapping[str, Tensor]) -> None:
        """Ends a step: ``total`` has the sums over all shards of ``moves``."""
        for name, buffer in self._buffers().items():
            if buffer.is_floating_point():
                buffer.copy_(self._before[name] + total[name] / self.num_shards)
        self._before = {}
