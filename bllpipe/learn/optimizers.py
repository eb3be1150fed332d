"""One optimiser a block: parameter groups with and without weight decay, and its state by parameter name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bllpipe.config.schema import OptimizerConfig


def make_optimizer(parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over ``parameters``; normalisations and biases (fewer than two dimensions) are not decayed
    unless ``decay_norm_and_bias`` asks for it."""
    decayed = [p for p in parameters.values() if p.dim() > 1 or config.decay_norm_and_bias]
    spared = [p for p in parameters.values() if p.dim() <= 1 and not config.decay_norm_and_bias]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": config.weight_decay}]
    groups.append({"params": spared, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def optimizer_state(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Momenta and the like as ``<parameter>.<entry>``; parameters that were never updated have none."""
    return {
        f"{name}.{entry}": value
        for name, parameter in parameters.items()
        for entry, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    """The inverse of ``optimizer_state``; entries of other parameters are ignored."""
    for key, value in state.items():
        name, _, entry = key.rpartition(".")
        if name in parameters:
            device = "cpu" if entry == "step" and not value.is_cuda else parameters[name].device
            optimizer.state[parameters[name]][entry] = value.to(device)
