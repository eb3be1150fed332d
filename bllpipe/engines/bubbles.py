"""How long a rank of a synchronous pipeline computes in a step, and how long it waits: the bubbles of its schedule."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from bllpipe.engines.stages import Schedule

COMPUTE = ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk")


class TimedSchedule:
    """A schedule that adds up what it waits, as a port does for the stopwatch: a step without what ``stages``
    (torch's PipelineStage, or what has some of these methods) compute in it. Only right where computing is not queued,
    so on CPUs."""

    edge = "other stages"

    def __init__(self, schedule: Schedule, stages: Sequence[object]) -> None:
        self._schedule, self.waited, self._computed = schedule, 0.0, 0.0
        for stage in stages:
            for name in COMPUTE:
                if hasattr(stage, name):
                    setattr(stage, name, self._counted(getattr(stage, name)))

    def step(self, *images: Tensor, target: Tensor | None = None, losses: list[Tensor] | None = None) -> Any:
        start, computed = time.perf_counter(), self._computed
        scores = self._schedule.step(*images, target=target, losses=losses)
        self.waited += time.perf_counter() - start - (self._computed - computed)
        return scores

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments, **named)
            self._computed += time.perf_counter() - start
            return result

        return counted
