"""What a block draws at random in training: dropout, stochastic depth, the noise of a loss.

The default generators are seeded before the forward pass of every shard, and again before its loss. So what is drawn
depends on the seed of the run, the block, the step and the shard alone: it is the same with other engines, with other
replicas, and in a run that was resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from bllpipe.utils.tensors import derived_seed

Part = Literal["forward", "loss"]
NOTHING = nullcontext()


class Draws:
    """The random numbers of the block whose last unit is ``unit``, on ``device``.

    ``found``: whether it draws any. With None the first step shows it: it draws if the state of a generator moves.
    Only a block that draws is seeded. For any other the generators stay as they were, as data may draw from them.
    """

    def __init__(self, seed: int, unit: str, device: torch.device, found: bool | None = None) -> None:
        self._seed, self._unit, self._device, self.found = seed, unit, device, found
        self._first: int | None = None  # the step that shows it

    def of(self, part: Part, step: int, shard: int) -> AbstractContextManager[None]:
        """The context in which the block computes ``part`` for ``shard`` in training step ``step``."""
        if self.found is None:
            if self._first is None:
                self._first = step
            if step == self._first:
                return self._watched(part, step, shard)
            self.found = False
        if self.found:
            self._begin(part, step, shard)
        return NOTHING

    @contextmanager
    def _watched(self, part: Part, step: int, shard: int) -> Iterator[None]:
        before = self._states()
        self._begin(part, step, shard)
        seeded = self._states()
        yield
        if any(not torch.equal(*pair) for pair in zip(self._states(), seeded, strict=True)):
            self.found = True
            return
        for generator, state in zip(self._generators(), before, strict=True):
            generator.set_state(state)

    def _begin(self, part: Part, step: int, shard: int) -> None:
        number = derived_seed(self._seed, "draws", self._unit, step, shard, part)
        for generator in self._generators():  # torch.manual_seed would also ask for all GPUs
            generator.manual_seed(number)

    def _states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators()]

    def _generators(self) -> list[torch.Generator]:
        """Those that layers draw from: some draw on the CPU for a block on a GPU."""
        if self._device.type != "cuda":
            return [torch.default_generator]
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        return [torch.default_generator, torch.cuda.default_generators[index]]


NOT_SEEDED = Draws(0, "", torch.device("cpu"), found=False)
