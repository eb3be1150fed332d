"""NaN and Inf end a run, and are called by name.

On a CPU they do so in the step in which they reach a loss, before that step's update. On a GPU every look waits for the
device, and a look between a loss and its update cannot be part of a graph. There the sums of the losses since the last
line of metrics tell, as NaN and Inf stay in a sum. They are read at every line, and belong to every checkpoint, of
which no tensor may hold either: so what such a step has done to the weights reaches no checkpoint.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bllpipe.errors import NonFiniteError
from bllpipe.learn.block import Outcome

if TYPE_CHECKING:
    from bllpipe.run.rank import Actor

Named = Iterable[tuple[str, Tensor]]
INPUT = "its input"
COURTESY_SECONDS, MOST_COURTESIES = 0.5, 8
ADVICE = "lower optimizer.lr, set optimizer.clip_norm, or check the images"


def guard(actor: Actor, at_lines: bool) -> Actor:
    """The actor, looking at the losses of every step, or ``at_lines`` of metrics alone."""
    block, share = getattr(actor.loop, "block", None), getattr(actor.loop, "share", None)
    if at_lines:
        actor.recorder.look = partial(_look, actor, block, share)
        return actor
    if block is not None:
        block.losses = _guarded(block.losses, actor, lambda *given: _of_block(block, *given))
    if share is not None:  # whose schedule has taken hold of its loss already
        share.outcome = _guarded(share.outcome, actor, _of_share)
    return actor


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


def _guarded(compute: Callable[..., Any], actor: Actor, tensors: Callable[..., Named]) -> Callable[..., Any]:
    """``compute``, with a look at its results; the first of ``tensors`` that is not finite is to blame."""

    def computed(*given: Any) -> Any:
        result = compute(*given)
        terms = result.terms if isinstance(result, Outcome) else result[0]
        if not all(is_finite(term) for term in terms.values()):
            _blame(tensors(*given, result), actor)
        return result

    return computed


def _look(actor: Actor, block: Any, share: Any, terms: Mapping[str, float]) -> None:
    """Looks at the mean terms of a line."""
    if not all(map(math.isfinite, terms.values())):
        _blame(_behind_updates(block, share, terms), actor)


def _blame(tensors: Named, actor: Actor) -> None:
    place = actor.recorder.place
    require_finite(dict(tensors), place["rank"], place["role"], str(actor.entry), received=[INPUT])


def _of_block(block: Any, alpha: Tensor, target: Any, result: Any) -> Named:
    """From cause to effect; the weights are those before this step's update."""
    yield INPUT, block.x
    yield from block.learner.weights().items()
    yield "beta", target.beta_BC
    yield "alpha", alpha
    for name, term in result[0].items():
        yield f"the loss term {name!r}", term


def _of_share(scores_BK: Tensor, label_B: Tensor, loss: Tensor, *more: Any) -> Named:
    """The update is done: the weights are no witness any more."""
    yield "its class scores", scores_BK
    yield "the loss", loss


def _behind_updates(block: Any, share: Any, terms: Mapping[str, float]) -> Named:
    """What is still there of the causes: the weights are those behind the updates of all steps of the line."""
    if block is not None:
        yield INPUT, block.x
    yield from (share if block is None else block).learner.weights().items()
    for name, mean in terms.items():
        yield f"the mean of the loss term {name!r}", torch.tensor(mean)
