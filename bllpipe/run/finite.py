"""NaN and Inf end a run, and are called by name.

On a CPU they do so in the step in which they reach a loss, before that step's update. On a GPU every look waits for the
device, and a look between a loss and its update cannot be part of a graph. There the sums of the losses since the last
line of metrics tell, as NaN and Inf stay in a sum. They are read at every line, and belong to every checkpoint, of
which no tensor may hold either: so what such a step has done to the weights reaches no checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Mapping

from torch import Tensor

from bllpipe.errors import NonFiniteError

COURTESY_SECONDS, MOST_COURTESIES = 0.5, 8
ADVICE = "lower optimizer.lr, set optimizer.clip_norm, or check the images"


def require_finite(tensors: Mapping[str, Tensor], rank: int, role: str, when: str, received: Container[str]) -> None:
    """Raises NonFiniteError for the first tensor that holds NaN or Inf. One that was ``received`` comes from another
    rank, which is about to find that out too: it shall say it first."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            if name in received:
                threading.Event().wait(COURTESY_SECONDS * min(rank, MOST_COURTESIES))
            place = f"rank {rank} ({role}), {when}"
            raise NonFiniteError(f"{place}: {describe(name, tensor)}; {ADVICE}")


def is_finite(tensor: Tensor) -> bool:
    """Integers always are."""
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def describe(name: str, tensor: Tensor) -> str:
    """How much of it is what."""
    if tensor.numel() == 1:
        return f"{name} is {float(tensor.detach()):g}"
    nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return f"{name} has {nan:,} NaN and {inf:,} Inf among its {tensor.numel():,} values"
