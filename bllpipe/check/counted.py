"""Memory and parameters of modules that learn, from tensors without contents.

Shapes: B images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bllpipe.check.figures import Memory
from bllpipe.learn.learner import Learner
from bllpipe.plan.memory import kept_storages, storages
from bllpipe.ports import Round, Target

SHAPES_ONLY = torch.device("meta")
Forward = Callable[[], Iterable[Tensor]]  # returns what lives as long as the backward pass does


def rank_memory(learner: Learner, activations: int, messages: int = 0) -> Memory:
    """The memory of a rank that trains ``learner``."""
    trained = learner.optimizer
    return Memory(
        weights=_sum(storages(learner.weights().values())),
        gradients=sum(p.nbytes for p in trained.parameters.values() if p.requires_grad),
        optimizer=sum(value.nbytes for value in trained.state.values()),
        activations=activations,
        messages=messages,
    )


def kept_bytes(learner: Learner, forward: Forward) -> int:
    """What ``forward`` keeps for its backward pass, with what it returns, but without weights."""
    returned: list[Tensor] = []
    kept = kept_storages(lambda: returned.extend(forward()))
    weights = storages(learner.weights().values())
    return _sum({name: size for name, size in {**kept, **storages(returned)}.items() if name not in weights})


def num_parameters(weights: Iterable[Tensor]) -> int:
    """As summary.json counts them: numbers that training changes, but no counters."""
    return sum(value.numel() for value in weights if value.is_floating_point())


def batch_of(size: int, shape: tuple[int, ...], wants_gradient: bool = False) -> Tensor:
    """Images or activations, [B, ...]; in a pipeline those of a stage before want a gradient."""
    return torch.zeros(size, *shape, requires_grad=wants_gradient, device=SHAPES_ONLY)


def target_of(size: int, channels: int) -> Target:
    """A feedback message and labels for ``size`` images."""
    label_B = torch.zeros(size, dtype=torch.int64, device=SHAPES_ONLY)
    return Target(Round("train", 0), batch_of(size, (channels,)), batch_of(size, ()), label_B)


def _sum(sizes: dict[int, int]) -> int:
    return sum(sizes.values())
