"""``blocks: balanced``: the cut whose most expensive block has the fewest operations, the same on every machine.

Operations are those of convolutions and matrix products in one training step: forward and backward, with the local
head. They are counted on fake tensors: nothing is computed or measured. ``bllpipe plan`` measures the time that a
machine takes for them, and prints its cut by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from bllpipe.config import Config
from bllpipe.errors import ConfigError
from bllpipe.learn.block import make_local_loss
from bllpipe.messages import Round, Target
from bllpipe.models.partition import Link, UnitCost, best_cut, bounds, local_cost, stage_cost
from bllpipe.models.registry import last_width, network_units
from bllpipe.models.units import Segment

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

BATCH = 2  # normalisations reject a batch with one value per channel


def with_balanced_cut(config: Config, image_shape: Sequence[int], num_classes: int) -> Config:
    """``config`` with the names of the units that ``blocks: balanced`` cuts after; any other config unchanged.

    Raises ConfigError when the network has too few units, or cannot be counted.
    """
    if config.balanced is None or config.engine == "single":
        return config
    costs = count_operations(config, image_shape, num_classes)
    names = list(costs)
    bounds(names, config.balanced)
    cost = (stage_cost if config.is_end_to_end else local_cost)(list(costs.values()), Link())
    positions = best_cut(len(names), config.balanced, cost)
    if positions is None:
        raise ConfigError(
            f"blocks is {config.blocks!r}, but one of them would be without parameters, which cannot be a block; "
            f"use --set blocks='balanced {config.balanced - 1}' or less"
        )
    return replace(config, blocks=[names[position - 1] for position in positions] or 1)


class CountedUnit(NamedTuple):
    """A unit, counted: the ``shape`` of its output, without the batch; numbers of one image's message, if a block ends
    with it; and numbers of trained parameters, of the unit and of the local head that such a block has."""

    shape: tuple[int, ...]
    cost: UnitCost
    trained: int
    message: int = 0
    head_trained: int = 0


def count_operations(config: Config, image_shape: Sequence[int], num_classes: int) -> dict[str, UnitCost]:
    """Operations of every unit for a batch of two images, by name; ConfigError for a unit that cannot be counted."""
    use = f"blocks is {config.blocks!r}", f"use a number, such as --set blocks={config.num_parts}"
    return {name: unit.cost for name, unit in count_units(config, image_shape, num_classes, use).items()}


def count_units(
    config: Config, image_shape: Sequence[int], num_classes: int, use: tuple[str, str]
) -> dict[str, CountedUnit]:
    """Every unit, with operations for a batch of two images, by name. Raises ConfigError for a unit that cannot be
    counted, which begins and ends with ``use``: what was asked for, and what to use in its place."""
    found = {}
    # built with values, on which initialisations may depend (torch's trunc_normal_ does); nothing of a run changes
    model = replace(config.model, weights=None, user_model=deepcopy(config.model.user_model))
    with torch.random.fork_rng(devices=[]):
        units = network_units(model, image_shape, num_classes, config.seed)
        network = [Segment([unit], config.seed).train() for unit in units]
        last = None if config.is_end_to_end else last_width(config, units)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = torch.empty(BATCH, *image_shape)
        for unit, built in zip(units, network, strict=True):
            with FakeCopyMode(mode):
                segment = deepcopy(built)
            try:
                is_last = unit is units[-1]
                x, found[unit.name] = _count(segment, x, config, num_classes, is_last, None if is_last else last)
            except RuntimeError as error:
                raise ConfigError(
                    f"{use[0]}, but the operations of unit {unit.name} cannot be counted for {list(x.shape[1:])} each: "
                    f"{error}; {use[1]}"
                ) from error
    return found


def _operation_counter() -> FlopCounterMode:
    from torch.utils.flop_counter import FlopCounterMode  # imports triton: 0.2 s that runs without it save

    return FlopCounterMode(display=False)


def _count(
    segment: Segment, x: Tensor, config: Config, num_classes: int, is_last: bool, width: int | None
) -> tuple[Tensor, CountedUnit]:
    """The output of the unit for ``x``, and what is counted of it."""
    parameters = list(segment.parameters())
    leaf = x.detach().clone().requires_grad_()
    with _operation_counter() as forward:
        alpha = segment(leaf.clone())
    both = _backward_operations(alpha, [leaf, *parameters])
    of_input = _backward_operations(alpha, [leaf])
    without_input = _backward_operations(segment(x.clone()), parameters) if parameters else 0
    alpha, head = alpha.detach(), (0, 0, 0)
    if not is_last and not config.is_end_to_end:
        head = _count_head(alpha, x, config, num_classes, width, segment.last_unit)
    size = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    operations, message, head_trained = head
    cost = UnitCost(forward.get_total_flops(), both, without_input, of_input, 0, operations, size)
    return alpha, CountedUnit(tuple(alpha.shape[1:]), cost, trained, message, head_trained)


def _backward_operations(alpha: Tensor, wanted: Sequence[Tensor]) -> int:
    """Those of the gradients of ``wanted``, without frozen parameters."""
    wanted = [tensor for tensor in wanted if tensor.requires_grad]
    if not wanted or not alpha.requires_grad:
        return 0
    with _operation_counter() as counter:
        torch.autograd.grad(alpha, wanted, torch.empty_like(alpha), retain_graph=True, allow_unused=True)
    return int(counter.get_total_flops())


def _count_head(
    alpha: Tensor, x: Tensor, config: Config, num_classes: int, width: int | None, unit: str
) -> tuple[int, int, int]:
    """Forward and backward of local head and objective, down to alpha; numbers of a message, and of parameters."""
    local, size = make_local_loss(config, x.shape[1:], alpha.shape[1:], num_classes, width, unit)
    beta_BC = torch.zeros(BATCH, size)
    target = Target(Round("train", 0), beta_BC, torch.ones(BATCH), torch.zeros(BATCH, dtype=torch.int64))
    alpha = alpha.clone().requires_grad_()
    with _operation_counter() as counter:
        terms, _, _ = local(alpha, target, x, None)
        torch.stack(list(terms.values())).sum().backward()
    return int(counter.get_total_flops()), size, sum(each.numel() for each in local.parameters())
