"""The devices of benchmarks.cluster: emulated stages whose every pass varies, differently on every rank, and that have
weights to sum up. Use them as ``model.name=benchmarks.cluster_devices:stages``.

Shapes: B images, K classes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.emulated import AddWeight, Clock, PassInput, Stage


class VaryingStage(Stage):
    """A stage with one draw for a forward pass and one for a backward pass. ``ballast``: numbers of its second
    parameter, whose gradient is zero."""

    def __init__(
        self,
        shape: Sequence[int],
        seconds: tuple[float, float],
        batch_size: int,
        jitter: float,
        draws: torch.Generator,
        ballast: int,
    ) -> None:
        super().__init__(shape, *seconds, batch_size, Clock(0.0, draws))
        self.jitter, self.draws = jitter, draws
        self.ballast = nn.Parameter(torch.zeros(ballast))

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] to [B, *shape], whatever the input's shape."""
        since, share = time.perf_counter(), len(x) / self.batch_size if self.training else 0.0
        forward, backward = (seconds * share * self._factor(seconds) for seconds in self.seconds)
        split = x.requires_grad
        x = PassInput.apply(x, self.clock, backward / 2) if split else x  # type: ignore[no-untyped-call]
        flat = x.flatten(1).mean(dim=1)
        made = flat.view(-1, *[1] * len(self.shape)).expand(-1, *self.shape)
        rest = backward / 2 if split else backward
        added: Tensor = AddWeight.apply(self.weight, made.detach(), self.clock, rest)  # type: ignore[no-untyped-call]
        alpha = made * 0 + added + 0 * self.ballast.sum()
        self.clock.wait(forward, since)
        return alpha

    def _factor(self, seconds: float) -> float:
        if not (self.jitter and seconds and self.training):
            return 1.0
        return 1 + self.jitter * (2 * float(torch.rand((), generator=self.draws)) - 1)


def stages(
    in_channels: int,
    num_classes: int,
    forward: Sequence[float],
    backward: Sequence[float],
    batch_size: int,
    channels: int = 16,
    side: int = 8,
    jitter: float = 0.0,
    ballast: int = 1,
) -> list[nn.Module]:
    """As ``benchmarks.emulated.stages``. The replicas of a stage, which draw differently, are told apart by their
    rank."""
    shapes: list[tuple[int, ...]] = [(channels, side, side)] * (len(forward) - 1) + [(num_classes,)]
    rank = int(os.environ.get("RANK", "0"))
    return [
        VaryingStage(shape, each, batch_size, jitter, torch.Generator().manual_seed(1000 * rank + number), ballast)
        for number, (shape, each) in enumerate(zip(shapes, zip(forward, backward, strict=True), strict=True))
    ]
