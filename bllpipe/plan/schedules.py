"""The order in which each rank of a pipeline works: pure lists. Imports no torch.

One step of 1F1B over three stages and four microbatches:

  rank 0   F0 F1 F2 B0 F3 B1 B2 B3
  rank 1   F0 F1 B0 F2 B1 F3 B2 B3
  rank 2   F0 B0 F1 B1 F2 B2 F3 B3
"""

from __future__ import annotations

from collections.abc import Callable

from bllpipe.plan.simulate import Kind, Op

StepOrder = Callable[[int, int, int], list[tuple[Kind, int]]]  # (stage, stages, microbatches) -> kinds and microbatches


def gpipe(stage: int, stages: int, microbatches: int) -> list[tuple[Kind, int]]:
    """All forwards, then all backwards (Huang et al. 2019)."""
    return [(kind, microbatch) for kind in ("F", "B") for microbatch in range(microbatches)]  # type: ignore[misc]


def one_f_one_b(stage: int, stages: int, microbatches: int) -> list[tuple[Kind, int]]:
    """As many forwards as fill the stages behind, then one backward for one forward (Narayanan et al. 2019)."""
    return _one_f_one_b(stage, stages, microbatches, lambda backward: [("B", backward)])


def zero_bubble(stage: int, stages: int, microbatches: int) -> list[tuple[Kind, int]]:
    """ZB-H1 (Qi et al. 2023): 1F1B whose backwards of the weights come later and fill the bubble.

    Stage k is k of them behind, so that no stage holds more microbatches than the first one does under 1F1B.
    """

    def back(backward: int) -> list[tuple[Kind, int]]:
        return [("B", backward), *([("W", backward - stage)] if backward >= stage else [])]  # type: ignore[list-item]

    left: list[tuple[Kind, int]] = [("W", weights) for weights in range(max(microbatches - stage, 0), microbatches)]
    return _one_f_one_b(stage, stages, microbatches, back) + left


def local(stage: int, stages: int, microbatches: int) -> list[tuple[Kind, int]]:
    """Block-local learning: forward, send, learn; whole batches."""
    return [(kind, batch) for batch in range(microbatches) for kind in ("F", "L")]  # type: ignore[misc]


def _one_f_one_b(
    stage: int, stages: int, microbatches: int, back: Callable[[int], list[tuple[Kind, int]]]
) -> list[tuple[Kind, int]]:
    ahead = min(microbatches, stages - stage)
    order: list[tuple[Kind, int]] = [("F", microbatch) for microbatch in range(ahead)]
    for backward in range(microbatches):
        order += back(backward)
        if backward + ahead < microbatches:
            order.append(("F", backward + ahead))
    return order


def orders_of(schedule: StepOrder, stages: int, microbatches: int, steps: int, updates: bool = True) -> list[list[Op]]:
    """``steps`` steps on every rank, one after another, each with an update at its end if ``updates``."""
    return [
        [
            Op(stage, step * microbatches + microbatch, kind)
            for step in range(steps)
            for kind, microbatch in [*schedule(stage, stages, microbatches), *_end(updates)]
        ]
        for stage in range(stages)
    ]


def _end(updates: bool) -> list[tuple[Kind, int]]:
    return [("U", 0)] if updates else []
