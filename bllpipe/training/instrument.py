"""What is wrapped around the actors of a rank, so that neither loops nor mathematics know of it: a look at their losses
for NaN and Inf, and spans of their ports, of what their loops compute and of their
records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from bllpipe.learn.block import Outcome
from bllpipe.training.tracing import Track, record
from bllpipe.training.worker import Actor
from bllpipe.utils.tensors import is_finite, require_finite

INPUT = "its input"
Named = Iterable[tuple[str, Tensor]]
P = ParamSpec("P")
T = TypeVar("T")
# What is wrapped in a loop's parts, by the name of the part: methods, and the kind of span that each makes.
KINDS: dict[str, dict[str, str]] = {
    "inputs": {"recv": "load"},  # of images; what comes over an edge is ``receive``
    "targets": {"recv": "load"},
    "block": {
        "forward": "forward",
        "stats": "stats",
        "losses": "loss",
        "backward": "backward",
        "step_optimizer": "update",
        "outcome": "log",
        "infer": "evaluate",
        "score": "evaluate",
    },
    "feedback": {"absorb": "absorb", "table": "target"},
    "images": {"recv": "load"},
    "labels": {"recv": "load"},
    "share": {"step": "update", "outcome": "log"},
    "stages": {
        "forward_one_chunk": "forward",
        "backward_one_chunk": "backward",
        "backward_weight_one_chunk": "backward",
    },
}


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


def _of_block(block: Any, alpha: Tensor, target: Any, *scores_and_result: Any) -> Named:
    """From cause to effect; the weights are those before this step's update."""
    yield INPUT, block.x
    yield from block.learner.weights().items()
    yield "beta", target.beta_BC
    yield "alpha", alpha
    for name, term in scores_and_result[-1][0].items():
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


def wrapped(method: Callable[P, T], track: Track, kind: str, edge: str = "") -> Callable[P, T]:
    """``method``, recording a span of ``kind`` a call."""

    @wraps(method)
    def call(*arguments: P.args, **named: P.kwargs) -> T:
        with record(track, kind, edge=edge):
            return method(*arguments, **named)

    return call


def wrap(instance: object, kinds: Mapping[str, str], track: Track, edge: str = "") -> None:
    """Replaces those methods of ``instance`` that it has."""
    for name, kind in kinds.items():
        method = getattr(instance, name, None)
        if method is not None:
            setattr(instance, name, wrapped(method, track, kind, edge))


def trace(actor: Actor, window: range) -> Actor:
    """The actor with spans of its ports, of what its loop computes, and of its records."""
    track = actor.track = Track(actor.recorder.place["actor"], window)
    ports = actor.stopwatch.ports
    for port in ports:
        wrap(port, {"send": "send", "recv": "receive"}, track, port.meter.edge)
    for name, kinds in KINDS.items():
        found = getattr(actor.loop, name, None)
        for part in found if isinstance(found, list) else [found]:
            if not any(part is port for port in ports):
                wrap(part, kinds, track)
    draw = getattr(getattr(actor.loop, "labels", None), "__next__", None)
    if draw is not None:  # a lane's; an iterator takes no new methods
        vars(actor.loop)["labels"] = _drawn(wrapped(draw, track, "load"))
    wrap(actor.recorder, {"record": "log"}, track)
    return actor


def _drawn(draw: Callable[[], T]) -> Iterator[T]:
    """Whatever ``draw`` gives until it raises StopIteration."""
    while True:
        try:
            drawn = draw()
        except StopIteration:
            return
        yield drawn
