"""How long a rank of a synchronous pipeline computes in a step, how long it waits (the bubbles of its schedule), and
how much it sends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from bllpipe.engines.stages import Schedule
from bllpipe.run.timing import Meter

COMPUTE = ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk")


class TimedSchedule:
    """A schedule that adds up what it sends and waits, as a port does for the stopwatch. It waits in a step when
    ``stages`` (torch's PipelineStage, or what has some of these methods) do not compute; without any it is not known,
    as on GPUs, where computing is queued."""

    def __init__(self, schedule: Schedule, stages: Sequence[object], sent_bytes: int = 0) -> None:
        self._schedule, self.meter, self._computed = schedule, Meter("other stages"), 0.0
        self._sent_bytes, self._knows_waiting = sent_bytes, bool(stages)
        for stage in stages:
            for name in COMPUTE:
                if hasattr(stage, name):
                    setattr(stage, name, self._counted(getattr(stage, name)))

    def step(self, *images: Tensor, target: Tensor | None = None, losses: list[Tensor] | None = None) -> Any:
        start, computed = time.perf_counter(), self._computed
        scores = self._schedule.step(*images, target=target, losses=losses)
        if self._knows_waiting:
            self.meter.waited += time.perf_counter() - start - (self._computed - computed)
        self.meter.sent += self._sent_bytes
        return scores

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments, **named)
            self._computed += time.perf_counter() - start
            return result

        return counted
