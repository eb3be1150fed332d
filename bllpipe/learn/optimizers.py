"""SGD and AdamW with their state in plain named tensors.

The arithmetic is torch's own (the functional forms behind torch.optim). Its optimiser classes are left out because
their first step imports the compiler, which takes seconds in every rank, and because a state by name is what
checkpoints and other cuts need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from bllpipe.config.schema import OptimizerConfig

ENTRIES = {"sgd": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq", "step")}


class Optimizer:
    """One optimiser over named parameters; ``state`` holds its tensors as ``<parameter>.<entry>``.

    Normalisations and biases (fewer than two dimensions) are not decayed unless ``decay_norm_and_bias`` asks for it.
    Parameters that ``factors`` names learn with the rate times their factor, so AdamW decays them with it too.
    On a GPU the learning rates lie there too, so that an update can be captured.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.parameters, self.config = dict(parameters), config
        self.factors = dict.fromkeys(self.parameters, 1.0) | dict(factors or {})
        self.state = {
            f"{name}.{entry}": torch.zeros((), device=p.device) if entry == "step" else torch.zeros_like(p.detach())
            for name, p in self.parameters.items()
            for entry in ENTRIES[config.name]
        }
        self.decayed = [name for name, p in self.parameters.items() if p.dim() > 1 or config.decay_norm_and_bias]
        self.spared = [name for name in self.parameters if name not in set(self.decayed)]
        self.rate: float | Tensor = 0.0
        self.device_rates: dict[float, Tensor] = {}  # by factor, where ``rate`` lies on the device
        if any(p.is_cuda for p in self.parameters.values()):
            self.keep_rate_on_device()

    def keep_rate_on_device(self) -> None:
        """The learning rates become float32 scalars that stay where they are, beside the parameters."""
        device = next(iter(self.parameters.values())).device
        self.device_rates = {factor: torch.zeros((), device=device) for factor in {1.0, *self.factors.values()}}
        lr, self.rate = float(self.rate), self.device_rates[1.0]
        self.set_rate(lr)

    def set_rate(self, lr: float) -> None:
        """Updates are made with ``lr`` from now on; the host does not wait."""
        if isinstance(self.rate, Tensor):
            for factor, rate in self.device_rates.items():
                rate.fill_(lr * factor)
        else:
            self.rate = lr

    def zero_grad(self) -> None:
        """Forgets the gradients of the step before."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def step(self, lr: float) -> None:
        """One update with learning rate ``lr``."""
        self.set_rate(lr)
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """One update with the rate that was set; parameters without a gradient stay as they are."""
        update = self._sgd if self.config.name == "sgd" else self._adamw
        decays = ((self.decayed, self.config.weight_decay), (self.spared, 0.0))
        for factor, (names, weight_decay) in product(dict.fromkeys(self.factors.values()), decays):
            learning = [name for name in names if self.factors[name] == factor]
            moved = [name for name in learning if self.parameters[name].grad is not None]
            if moved:
                update(moved, weight_decay, self._rate_times(factor))

    def _rate_times(self, factor: float) -> float | Tensor:
        return self.device_rates[factor] if isinstance(self.rate, Tensor) else self.rate * factor

    def _sgd(self, names: Sequence[str], weight_decay: float, lr: float | Tensor) -> None:
        sgd(
            *self._parameters_and_gradients(names),
            list(self._entries(names, "momentum_buffer")),
            fused=True,
            weight_decay=weight_decay,
            momentum=self.config.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=self.config.nesterov,
            maximize=False,
        )

    def _adamw(self, names: Sequence[str], weight_decay: float, lr: float | Tensor) -> None:
        adamw(
            *self._parameters_and_gradients(names),
            self._entries(names, "exp_avg"),
            self._entries(names, "exp_avg_sq"),
            [],
            self._entries(names, "step"),
            fused=True,
            amsgrad=False,
            beta1=self.config.betas[0],
            beta2=self.config.betas[1],
            lr=lr,
            weight_decay=weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def _parameters_and_gradients(self, names: Sequence[str]) -> tuple[list[Tensor], list[Tensor]]:
        parameters: list[Tensor] = [self.parameters[name] for name in names]
        return parameters, [parameter.grad for parameter in parameters if parameter.grad is not None]

    def _entries(self, names: Sequence[str], entry: str) -> list[Tensor]:
        return [self.state[f"{name}.{entry}"] for name in names]
