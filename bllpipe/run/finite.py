"""NaN and Inf end a run in the step in which they reach a loss, before that step's update, and are called by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bllpipe.errors import NonFiniteError
from bllpipe.learn.block import Outcome

if TYPE_CHECKING:
    from bllpipe.run.rank import Actor

Named = Iterable[tuple[str, Tensor]]
INPUT = "its input"
COURTESY_SECONDS, MOST_COURTESIES = 0.5, 8
ADVICE = "lower optimizer.lr, set optimizer.clip_norm, or check the images"


def guard(actor: Actor, every: int) -> Actor:
    """The actor, looking at its losses in every ``every``-th step, when a line is written: on a GPU each look waits for
    the device."""
    block, share = getattr(actor.loop, "block", None), getattr(actor.loop, "share", None)
    if block is not None:
        block.losses = _guarded(block.losses, actor, every, lambda *given: _of_block(block, *given))
    if share is not None:  # whose schedule has taken hold of its loss already
        share.outcome = _guarded(share.outcome, actor, every, _of_share)
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


def _guarded(
    compute: Callable[..., Any], actor: Actor, every: int, tensors: Callable[..., Named]
) -> Callable[..., Any]:
    """``compute``, with a look at its results now and then; the first of ``tensors`` that is not finite is to blame."""

    def computed(*given: Any) -> Any:
        result = compute(*given)
        terms = result.terms if isinstance(result, Outcome) else result[0]
        if _is_due(actor, every) and not all(is_finite(term) for term in terms.values()):
            _blame(tensors(*given, result), actor)
        return result

    return computed


def _is_due(actor: Actor, every: int) -> bool:
    """Whether to look at a loss now; tests are looked at only where that costs nothing."""
    entry = actor.entry
    return every == 1 or (entry is not None and entry.phase == "train" and (entry.step + 1) % every == 0)


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
