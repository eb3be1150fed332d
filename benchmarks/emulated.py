"""A network of stages that wait instead of computing: schedules, processes and messages are real, the devices are not.

A stage's forward and backward take given times and use no CPU, so many stages fit on few cores, and what is measured is
the engine. Use it as ``model.name=benchmarks.emulated:stages``.

Shapes: B images, C channels, S x S positions, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Clock:
    """Waits for a fraction of the time of a whole batch, which varies by up to ``jitter``.

    The work of a device takes its time independently of the load of this processor: a wait begins at ``since``, and the
    next wait is shorter by the time by which one was too long.
    """

    jitter: float
    draws: torch.Generator
    _late: float = 0.0

    def wait(self, seconds: float, since: float) -> None:
        if seconds == 0:
            return  # sleep(0) would yield the core
        between = 2 * float(torch.rand((), generator=self.draws)) - 1 if self.jitter else 0.0
        end = since + seconds * (1 + self.jitter * between) - self._late
        time.sleep(max(0.0, end - time.perf_counter()))
        self._late = time.perf_counter() - end


class PassInput(torch.autograd.Function):
    """The identity; the gradient of the input takes ``seconds``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: Clock, seconds: float) -> Tensor:
        ctx.clock, ctx.seconds = clock, seconds
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        ctx.clock.wait(ctx.seconds, time.perf_counter())
        return gradients[0], None, None


class AddWeight(torch.autograd.Function):
    """x + the first weight; the gradient of the weights takes ``seconds``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, clock: Clock, seconds: float) -> Tensor:
        ctx.clock, ctx.seconds, ctx.weights = clock, seconds, len(weight)
        return x + weight[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        since, gradient = time.perf_counter(), gradients[0].sum().repeat(ctx.weights)
        ctx.clock.wait(ctx.seconds, since)
        return gradient, None, None, None


class Stage(nn.Module):
    """Seconds for a batch of ``batch_size``; a microbatch takes its share. Half of the backward time is the gradient of
    the input, where one is wanted, as zero-bubble schedules tell the two halves apart."""

    def __init__(
        self, shape: Sequence[int], forward: float, backward: float, batch_size: int, clock: Clock, weights: int = 1
    ) -> None:
        super().__init__()
        self.shape, self.seconds, self.batch_size, self.clock = tuple(shape), (forward, backward), batch_size, clock
        self.weight = nn.Parameter(torch.zeros(weights))

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] to [B, *shape], whatever the input's shape."""
        since, share = time.perf_counter(), len(x) / self.batch_size if self.training else 0.0
        forward, backward = (seconds * share for seconds in self.seconds)
        split = x.requires_grad
        x = PassInput.apply(x, self.clock, backward / 2) if split else x  # type: ignore[no-untyped-call]
        flat = x.flatten(1).mean(dim=1)
        made = flat.view(-1, *[1] * len(self.shape)).expand(-1, *self.shape)
        rest = backward / 2 if split else backward
        alpha: Tensor = made * 0 + AddWeight.apply(self.weight, made.detach(), self.clock, rest)  # type: ignore[no-untyped-call]
        self.clock.wait(forward, since)
        return alpha


def stages(
    in_channels: int,
    num_classes: int,
    forward: Sequence[float],
    backward: Sequence[float],
    batch_size: int,
    channels: int = 16,
    side: int = 8,
    jitter: float = 0.0,
    weights: int = 1,
) -> list[nn.Module]:
    """A stage for every entry of ``forward`` and ``backward`` (seconds a batch). What travels between them is
    [B, channels, side, side]; the last one makes class scores [B, K]. Each has so many ``weights``."""
    shapes: list[tuple[int, ...]] = [(channels, side, side)] * (len(forward) - 1) + [(num_classes,)]
    return [
        Stage(shape, f, b, batch_size, Clock(jitter, torch.Generator().manual_seed(number)), weights)
        for number, (shape, f, b) in enumerate(zip(shapes, forward, backward, strict=True))
    ]
