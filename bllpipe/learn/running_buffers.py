"""The running mean and variance of BatchNorm, and other buffers that a forward pass moves: in a batch of shards, and
those that no checkpoint holds."""

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


class UnsavedBuffers:
    """The buffers of ``modules`` that are in no ``state_dict`` (persistent=False), with copies of their values."""

    def __init__(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        self._before = {
            f"{prefix}.{path}.{name}".replace("..", "."): (buffer, buffer.clone())
            for prefix, module in modules
            for path, part in module.named_modules()
            for name in part._non_persistent_buffers_set
            if isinstance(buffer := part._buffers.get(name), Tensor)
        }

    def changed(self) -> list[str]:
        """The names of those that were changed in place; each is returned once."""
        names = [name for name, (now, before) in self._before.items() if not torch.equal(now, before)]
        for name in names:
            del self._before[name]
        return names
