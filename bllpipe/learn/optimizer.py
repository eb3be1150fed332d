"""The optimiser of one block: SGD or AdamW with their state in named tensors, and the learning rate of each step.

The arithmetic is torch's own (the functional forms behind torch.optim). Its optimizer classes are not used because
their first step imports the compiler, which takes seconds in every rank, and because checkpoints need a state by name,
which can be loaded into another cut. The learning rate is a pure function of the step: nothing to save, the same for
all blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import product
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from bllpipe.config.schema import Config, OptimizerConfig, ScheduleConfig
from bllpipe.errors import ConfigError
from bllpipe.learn.memory_format import autocast
from bllpipe.learn.running_buffers import UnsavedBuffers
from bllpipe.utils.console import warn
from bllpipe.utils.slices import is_sliced, own_part
from bllpipe.utils.tensors import restore, span

ENTRIES = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq", "step")}
PREFIX = "optimizer."
GRADIENT = "gradient."  # in front of the names of gradients
HEADS = "heads."  # prefix of the names of local heads' parameters
Norm = Callable[[Sequence[Tensor]], Tensor]  # of gradients, as of one long vector


class Optimizer:
    """One optimiser over named parameters; ``state`` holds its tensors as ``<parameter>.<entry>``. ``own`` are the
    parameters, or this process's slices of them: it updates these, along their gradients.

    Normalisations and biases (fewer than two dimensions) are decayed with ``decay_norm_and_bias`` only. Parameters in
    ``factors`` learn with the rate times their factor, so AdamW's decay of them is scaled too. On a GPU the learning
    rates are tensors on it, so that an update can be captured.

    torch's fused updates on the CPU go through memory in a row, so parameters with gaps in it, such as slices of a
    larger tensor, are updated one by one. Raises ConfigError for one whose values share memory, as ``expand`` makes.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.parameters, self.config = dict(parameters), config
        self.own = {name: own_part(p) for name, p in self.parameters.items()}
        spans = {name: span(p) for name, p in self.own.items()}
        for name, p in self.own.items():
            if p.requires_grad and spans[name] < p.numel():
                raise ConfigError(
                    f"parameter {name}: expected memory for each of its {p.numel():,} values, got {spans[name]:,}, as "
                    f"of a tensor that was expanded; use .clone()"
                )
        self.with_gaps = {name for name, p in self.own.items() if spans[name] > p.numel()}
        self.factors = dict.fromkeys(self.parameters, 1.0) | dict(factors or {})
        self.state = {
            f"{name}.{entry}": torch.zeros((), device=p.device) if entry == "step" else torch.zeros_like(p.detach())
            for name, p in self.parameters.items()
            for entry in ENTRIES[config.name]
        }
        self.decayed = [name for name, p in self.parameters.items() if p.dim() > 1 or config.decay_norm_and_bias]
        self.undecayed = [name for name in self.parameters if name not in set(self.decayed)]
        self.rate: float | Tensor = 0.0
        self.device_rates: dict[float, Tensor] = {}  # by factor, if ``rate`` is on the device
        if any(p.is_cuda for p in self.parameters.values()):
            self.keep_rate_on_device()

    def keep_rate_on_device(self) -> None:
        """Turns the learning rates into float32 scalars at fixed addresses on the device of the parameters."""
        device = next(iter(self.parameters.values())).device
        self.device_rates = {factor: torch.zeros((), device=device) for factor in {1.0, *self.factors.values()}}
        lr, self.rate = float(self.rate), self.device_rates[1.0]
        self.set_rate(lr)

    def set_rate(self, lr: float) -> None:
        """Sets the learning rate of later updates; the host does not wait."""
        if isinstance(self.rate, Tensor):
            for factor, rate in self.device_rates.items():
                rate.fill_(lr * factor)
        else:
            self.rate = lr

    def zero_grad(self) -> None:
        """Drops the gradients of the step before."""
        for parameter in (*self.parameters.values(), *self.own.values()):
            parameter.grad = None

    def step(self, lr: float) -> None:
        """One update with learning rate ``lr``."""
        self.set_rate(lr)
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """One update with the current rate; parameters without a gradient do not change."""
        update = self._sgd if self.config.name == "sgd" else self._adamw
        decays = ((self.decayed, self.config.weight_decay), (self.undecayed, 0.0))
        factors = dict.fromkeys(self.factors.values())
        for factor, (names, weight_decay), fused in product(factors, decays, (True, False)):
            group = [name for name in names if self.factors[name] == factor and fused == (name not in self.with_gaps)]
            updated = [name for name in group if self.own[name].grad is not None]
            if updated:
                rate = self.device_rates[factor] if isinstance(self.rate, Tensor) else self.rate * factor
                update(updated, weight_decay, rate, fused)

    def _sgd(self, names: Sequence[str], weight_decay: float, lr: float | Tensor, fused: bool) -> None:
        sgd(
            *self._parameters_and_gradients(names),
            list(self._entries(names, "momentum_buffer")),
            foreach=False,
            fused=fused,
            weight_decay=weight_decay,
            momentum=self.config.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=self.config.nesterov,
            maximize=False,
        )

    def _adamw(self, names: Sequence[str], weight_decay: float, lr: float | Tensor, fused: bool) -> None:
        adamw(
            *self._parameters_and_gradients(names),
            self._entries(names, "exp_avg"),
            self._entries(names, "exp_avg_sq"),
            [],
            self._entries(names, "step"),
            foreach=False,
            fused=fused,
            amsgrad=False,
            beta1=self.config.betas[0],
            beta2=self.config.betas[1],
            lr=lr,
            weight_decay=weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def _parameters_and_gradients(self, names: Sequence[str]) -> tuple[list[Tensor], list[Tensor]]:
        parameters = [self.own[name] for name in names]
        return parameters, [parameter.grad for parameter in parameters if parameter.grad is not None]

    def _entries(self, names: Sequence[str], entry: str) -> list[Tensor]:
        return [own_part(self.state[f"{name}.{entry}"]) for name in names]


class Learner:
    """``modules``, each with the prefix of its names, and one optimiser; ``norm`` computes the norm for clipping."""

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
        self._unsaved = UnsavedBuffers(self.modules)

    def step(self, step: int) -> float:
        """Training step ``step`` along the current gradients; returns its learning rate."""
        lr = self.set_rate(step)
        self.apply()
        return lr

    def set_rate(self, step: int) -> float:
        """Sets the learning rate of training step ``step``, and returns it."""
        lr = self.config.optimizer.lr * rate_factor(step, self.total_steps, self.config.schedule)
        self.optimizer.set_rate(lr)
        return lr

    def apply(self) -> None:
        """One update along the current gradients, without a synchronization."""
        clip_norm = self.config.optimizer.clip_norm
        if clip_norm is not None:
            self._unclipped = self.norm(self._gradients())
            nn.utils.clip_grads_with_norm_(self.optimizer.own.values(), clip_norm, self._unclipped)
        self.optimizer.apply()

    def trainable(self) -> dict[str, Tensor]:
        """The parameters that may get a gradient, by the names of ``gradients``: those that are not sliced."""
        found = {name: p for name, p in self.parameters.items() if p.requires_grad and not is_sliced(p)}
        return {f"{GRADIENT}{name}": p.detach() for name, p in found.items()}

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of the parameters that have one, by ``gradient.`` and their names: of sliced ones, slices."""
        return {f"{GRADIENT}{name}": own_part(p.grad) for name, p in self.parameters.items() if p.grad is not None}

    def set_gradients(self, sums: Mapping[str, Tensor]) -> None:
        """Replaces the current gradients by those in ``sums``, which have the names of ``gradients``."""
        self.optimizer.zero_grad()
        for name, parameter in self.optimizer.own.items():
            parameter.grad = sums.get(f"{GRADIENT}{name}")

    def gradient_norm(self) -> Tensor:
        """The norm of the last step's gradients before clipping."""
        return self.norm(self._gradients()) if self._unclipped is None else self._unclipped

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.optimizer.own.values() if p.grad is not None]

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers, not copies, by their names in checkpoints."""
        return {
            f"{prefix}.{name}": value
            for prefix, module in self.modules
            for name, value in module.state_dict(keep_vars=True).items()
            if isinstance(value, Tensor)
        }

    def state(self) -> dict[str, Tensor]:
        """``weights`` and the optimiser's state: all that a checkpoint holds. A warning names what is missing there."""
        if names := self._unsaved.changed():
            warn(
                f"{', '.join(names)} changes in training, but no checkpoint holds it: a resumed run ends in other "
                f"bits; use register_buffer with persistent=True"
            )
        return {**self.weights(), **{f"{PREFIX}{name}": value for name, value in self.optimizer.state.items()}}

    def load(self, state: Mapping[str, Tensor]) -> list[str]:
        """Copies the tensors of these modules from ``state``; returns the names of weights that are missing there.

        Raises CheckpointError, and copies nothing, when a tensor has another shape or dtype.
        """
        restore(self.state(), state)
        return sorted(self.weights().keys() - state.keys())

    @property
    def device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.config, self.device)


def rate_factor(step: int, total_steps: int, config: ScheduleConfig) -> float:
    """The learning rate of training step ``step`` (from 0) as a fraction of the peak."""
    factor = SCHEDULES[config.name](step / max(total_steps, 1), config)
    if config.name != "onecycle" and step < config.warmup_steps:
        factor *= (step + 1) / config.warmup_steps
    return factor


def _one_cycle(progress: float, config: ScheduleConfig) -> float:
    """Up to the peak and down again, both along half a cosine (Smith & Topin 2018)."""
    if progress < config.peak_at:
        return _half_cosine(config.start_fraction, 1.0, progress / config.peak_at)
    return _half_cosine(1.0, config.final_fraction, (progress - config.peak_at) / max(1 - config.peak_at, 1e-9))


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + cos(pi * min(progress, 1.0))) / 2


SCHEDULES: dict[str, Callable[[float, ScheduleConfig], float]] = {
    "constant": lambda progress, config: 1.0,
    "cosine": lambda progress, config: _half_cosine(1.0, config.final_fraction, progress),
    "onecycle": _one_cycle,
    "multistep": lambda progress, config: config.gamma ** sum(progress >= each for each in config.milestones),
}
