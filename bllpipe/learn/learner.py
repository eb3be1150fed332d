"""Modules that are trained together: their parameters by name, the optimiser of these, and what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bllpipe.config.schema import Config
from bllpipe.learn.optimizers import Optimizer
from bllpipe.learn.saved import restore
from bllpipe.learn.schedule import rate_factor

PREFIX = "optimizer."
HEADS = "heads."  # how names of local heads' parameters begin
Norm = Callable[[Sequence[Tensor]], Tensor]  # of gradients, as of one long vector


class Learner:
    """``modules``, each with the prefix of its names, and one optimiser; ``norm`` gives the norm that is clipped."""

    def __init__(
        self,
        modules: Sequence[tuple[str, nn.Module]],
        config: Config,
        total_steps: int,
        norm: Norm = nn.utils.get_total_norm,
    ) -> None:
        self.modules, self.config, self.total_steps, self.norm = list(modules), config, total_steps, norm
        self.parameters = {
            f"{prefix}.{name}": parameter
            for prefix, module in self.modules
            for name, parameter in module.named_parameters()
        }
        factor = config.objective.head_lr
        heads = [name for name in self.parameters if name.startswith(HEADS)]
        self.optimizer = Optimizer(self.parameters, config.optimizer, dict.fromkeys(heads, factor))
        self._unclipped: Tensor | None = None

    def step(self, step: int) -> float:
        """Training step ``step`` along the gradients at hand; returns its learning rate."""
        lr = self.set_rate(step)
        self.apply()
        return lr

    def set_rate(self, step: int) -> float:
        """Learns with the rate of training step ``step`` from now on; returns it."""
        lr = self.config.optimizer.lr * rate_factor(step, self.total_steps, self.config.schedule)
        self.optimizer.set_rate(lr)
        return lr

    def apply(self) -> None:
        """One update along the gradients at hand; the host is not asked for anything, nor does it ask."""
        clip_norm = self.config.optimizer.clip_norm
        if clip_norm is not None:
            self._unclipped = self.norm(self._gradients())
            nn.utils.clip_grads_with_norm_(self.parameters.values(), clip_norm, self._unclipped)
        self.optimizer.apply()

    def gradient_norm(self) -> Tensor:
        """The norm of the last step's gradients, before they were clipped."""
        return self.norm(self._gradients()) if self._unclipped is None else self._unclipped

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers, the live ones, by the names that a checkpoint gives them."""
        return {
            f"{prefix}.{name}": value
            for prefix, module in self.modules
            for name, value in module.state_dict(keep_vars=True).items()
            if isinstance(value, Tensor)
        }

    def state(self) -> dict[str, Tensor]:
        """``weights`` and the optimiser's state: everything that a resumed run needs."""
        return {**self.weights(), **{f"{PREFIX}{name}": value for name, value in self.optimizer.state.items()}}

    def load(self, state: Mapping[str, Tensor]) -> list[str]:
        """Takes what is its own from ``state``; returns the names of weights that it did not find.

        Raises CheckpointError, and takes nothing, when a tensor has another shape or dtype than its own.
        """
        restore(self.state(), state)
        return sorted(self.weights().keys() - state.keys())

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def autocast(self) -> AbstractContextManager[Any]:
        """The run's own precision of computing."""
        if self.config.precision.compute == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)
