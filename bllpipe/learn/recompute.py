"""Activation checkpointing: of every unit only the input is kept, and the backward pass computes the unit again.

The results have the same bits. torch restores the states of random generators and autocast for the second forward
pass; buffers are restored here. It computes with the values before the first pass, as spectral norms need, and leaves
no trace: the running statistics of BatchNorm move once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bllpipe.errors import ConfigError
from bllpipe.models.units import Run, Segment

FIXED = "feedback_weight"  # the end of names of buffers that no pass changes, as large as weights
Buffers = list[tuple[nn.Module, str, Tensor]]


def recompute_units(segment: Segment) -> None:
    """From now on the backward pass computes the units of ``segment`` again, in place of keeping their activations.

    A later forward pass raises ConfigError for a unit that changes its own input in place.
    """

    def wrap(number: int, run: Run) -> Run:
        modules = [module for part in segment.modules_of(number) for module in part.modules()]
        return lambda x: _recomputed(run, x, modules, segment, number)

    segment.wrap_units(wrap)


def _recomputed(run: Run, x: Tensor, modules: list[nn.Module], segment: Segment, number: int) -> Tensor:
    if not torch.is_grad_enabled():
        return run(x)
    version, before = x._version, _copies(_buffers(modules))

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _with_buffers(before)

    alpha: Tensor = checkpoint(run, x, use_reentrant=False, preserve_rng_state=segment.may_draw(), context_fn=contexts)
    if x._version != version:
        raise ConfigError(
            f"unit {segment.unit_ends[number]} changes its input in place, so the backward pass cannot compute it "
            f"again from its input; use layers without inplace=True at its beginning, or --set model.recompute=none"
        )
    return alpha


def _buffers(modules: list[nn.Module]) -> Buffers:
    """As they are now: a module may assign new ones."""
    return [
        (module, name, buffer)
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None and not name.endswith(FIXED)
    ]


def _copies(buffers: Buffers) -> Buffers:
    return [(module, name, buffer.clone()) for module, name, buffer in buffers]


@contextmanager
def _with_buffers(before: Buffers) -> Iterator[None]:
    """A context in which modules have copies of the buffers ``before``, as a second backward pass may begin with them
    too. At its end they have their own again."""
    own = [(module, name, module._buffers[name]) for module, name, _ in before]
    for module, name, buffer in _copies(before):
        module._buffers[name] = buffer
    try:
        yield
    finally:
        for module, name, now in own:
            module._buffers[name] = now
