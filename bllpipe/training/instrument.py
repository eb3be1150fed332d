"""Instrumentation of the actors of a rank, of which neither loops nor mathematics know: checks of their losses for NaN
and Inf, and spans of their ports, of the computation in their loops and of their metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import Tensor

from bllpipe.training.tracing import Track, record
from bllpipe.training.worker import Actor
from bllpipe.utils.tensors import is_finite, require_finite

INPUT = "its input"
# By attribute of a loop: the methods that are traced, and the kind of their spans.
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
    "trainer": {"step": "update", "outcome": "log"},
    "stages": {
        "forward_one_chunk": "forward",
        "backward_one_chunk": "backward",
        "backward_weight_one_chunk": "backward",
    },
}


def wrap_method(
    target: Any,
    name: str,
    *,
    before: Callable[..., object] | None = None,
    after: Callable[..., Any] | None = None,
    around: Callable[[], AbstractContextManager[object]] | None = None,
) -> None:
    """Wraps the method ``name`` of this one instance.

    ``before`` gets the arguments of every call. ``after`` gets the result and the arguments, and returns the result for
    the caller. ``around`` makes a context for every call of the method itself.
    """
    method = getattr(target, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if before is not None:
            before(*arguments, **named)
        if around is None:
            result = method(*arguments, **named)
        else:
            with around():
                result = method(*arguments, **named)
        return result if after is None else after(result, *arguments, **named)

    # updated=(): the attributes of a module that is called like a method stay its own
    setattr(target, name, update_wrapper(call, method, updated=()))


def guard(actor: Actor, at_lines: bool) -> Actor:
    """The actor with a check of the losses of every step, or of those in a line of metrics alone (``at_lines``)."""
    block, trainer = getattr(actor.loop, "block", None), getattr(actor.loop, "trainer", None)
    if at_lines:
        actor.metrics.look = partial(_check_line, actor, block, trainer)
        return actor
    if block is not None:
        wrap_method(block, "losses", after=partial(_check_losses, actor, block))
    if trainer is not None:  # not its loss, which its schedule calls by a reference of its own
        wrap_method(trainer, "outcome", after=partial(_check_outcome, actor))
    return actor


def _check_losses(actor: Actor, block: Any, result: Any, alpha: Tensor, target: Any, *scores: Tensor) -> Any:
    """From cause to effect: the first of these that is not finite is named. The weights are those before the update."""
    terms: Mapping[str, Tensor] = result[0]
    if not all(map(is_finite, terms.values())):
        named = {f"the loss term {name!r}": term for name, term in terms.items()}
        weights = block.learner.weights()
        _raise_for(actor, {INPUT: block.x, **weights, "beta": target.beta_BC, "alpha": alpha, **named})
    return result


def _check_outcome(actor: Actor, result: Any, scores_BK: Tensor, label_B: Tensor, loss: Tensor, *more: Any) -> Any:
    """Without the weights, which the update has changed already."""
    if not all(map(is_finite, result.terms.values())):
        _raise_for(actor, {"its class scores": scores_BK, "the loss": loss})
    return result


def _check_line(actor: Actor, block: Any, trainer: Any, terms: Mapping[str, float]) -> None:
    """The mean terms of a line. The weights are those after the updates of all of its steps."""
    if not all(map(math.isfinite, terms.values())):
        given = {} if block is None else {INPUT: block.x}
        weights = (trainer if block is None else block).learner.weights()
        means = {f"the mean of the loss term {name!r}": torch.tensor(mean) for name, mean in terms.items()}
        _raise_for(actor, {**given, **weights, **means})


def _raise_for(actor: Actor, tensors: Mapping[str, Tensor]) -> None:
    place = actor.metrics.place
    require_finite(tensors, place["rank"], place["role"], str(actor.entry), received=[INPUT])


def trace_methods(instance: object, kinds: Mapping[str, str], track: Track, edge: str = "") -> None:
    """Records a span for every call of those methods in ``kinds`` that ``instance`` has."""
    for name, kind in kinds.items():
        if getattr(instance, name, None) is not None:
            wrap_method(instance, name, around=partial(record, track, kind, edge=edge))


def trace(actor: Actor, window: range) -> Actor:
    """The actor with spans of its ports, of the computation in its loop, and of its metrics."""
    track = actor.track = Track(actor.metrics.place["actor"], window)
    ports = actor.stopwatch.ports
    for port in ports:
        trace_methods(port, {"send": "send", "recv": "receive", "total": "wait"}, track, port.meter.edge)
    for name, kinds in KINDS.items():
        found = getattr(actor.loop, name, None)
        for part in found if isinstance(found, list) else [found]:
            if not any(part is port for port in ports):
                trace_methods(part, kinds, track)
    labels = getattr(actor.loop, "labels", None)
    if isinstance(labels, Iterator):  # of a feedback loop; the methods of an iterator cannot be replaced
        vars(actor.loop)["labels"] = _traced(labels, track)
    trace_methods(actor.metrics, {"record": "log"}, track)
    return actor


def _traced(labels: Iterator[Tensor], track: Track) -> Iterator[Tensor]:
    while True:
        with record(track, "load"):
            label_B = next(labels, None)
        if label_B is None:
            return
        yield label_B
