"""The learning rate as a pure function of the step: nothing to save, nothing to resume, the same for all blocks."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

from bllpipe.config.schema import ScheduleConfig


def rate_factor(step: int, total_steps: int, config: ScheduleConfig) -> float:
    """The fraction of the peak learning rate with which training step ``step`` (from 0) is made."""
    factor = SCHEDULES[config.name](step / max(total_steps, 1), config)
    if config.name != "onecycle" and step < config.warmup_steps:
        factor *= (step + 1) / config.warmup_steps
    return factor


def _constant(progress: float, config: ScheduleConfig) -> float:
    return 1.0


def _cosine(progress: float, config: ScheduleConfig) -> float:
    return _blend(1.0, config.final_fraction, progress)


def _one_cycle(progress: float, config: ScheduleConfig) -> float:
    """Up to the peak and down again, both along half a cosine (Smith & Topin 2018)."""
    if progress < config.peak_at:
        return _blend(config.start_fraction, 1.0, progress / config.peak_at)
    return _blend(1.0, config.final_fraction, (progress - config.peak_at) / max(1 - config.peak_at, 1e-9))


def _multistep(progress: float, config: ScheduleConfig) -> float:
    return config.gamma ** sum(progress >= milestone for milestone in config.milestones)


SCHEDULES: dict[str, Callable[[float, ScheduleConfig], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "onecycle": _one_cycle,
    "multistep": _multistep,
}


def _blend(start: float, end: float, progress: float) -> float:
    """Half a cosine from ``start`` to ``end``."""
    return end + (start - end) * (1 + cos(pi * min(progress, 1.0))) / 2
