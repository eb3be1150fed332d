"""How errors travel back through a network that learns end to end, by method."""

from __future__ import annotations

from collections.abc import Callable

from bllpipe.learn.direct_feedback import direct
from bllpipe.learn.feedback_alignment import fixed_random, sign_symmetric
from bllpipe.learn.units import Segment


def backpropagation(segment: Segment, num_classes: int, seed: int) -> None:
    """bp, and every block that learns from its own loss: through the true weights, as autograd has it."""


PROPAGATIONS: dict[str, Callable[[Segment, int, int], None]] = {
    "fa": fixed_random,
    "usf": sign_symmetric,
    "dfa": direct,
}


def propagate(segment: Segment, method: str, num_classes: int, seed: int) -> None:
    """Changes the way back through ``segment`` as ``method`` has it; to be called before its first batch."""
    PROPAGATIONS.get(method, backpropagation)(segment, num_classes, seed)
