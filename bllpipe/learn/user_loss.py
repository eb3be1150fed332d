"""A user-defined loss, a function or a module, whose result is checked in every step.

Shapes: B images, K classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bllpipe.config.schema import ObjectiveConfig
from bllpipe.errors import ConfigError
from bllpipe.messages import Target
from bllpipe.models.registry import imported

EXPECTED = "expected a dict of scalar tensors whose sum is the loss"
EXAMPLE = 'use {"pred": cross_entropy(scores, label)}'
# The other fields of a line of metrics.jsonl and of the progress of a run.
RECORD_FIELDS = (
    {"phase", "step", "epoch", "rank", "role", "actor"}
    | {"loss", "accuracy", "test_accuracy", "ensemble_accuracy", "lr", "alignment", "gradient_norm"}
    | {"images_per_second", "waiting", "resident_bytes", "training_seconds"}
)


def user_loss(config: ObjectiveConfig, alpha_shape: Sequence[int], num_classes: int) -> UserLoss:
    """The user-defined loss, imported by ``objective.function`` or passed as an object: a function (alpha, scores_BK,
    target, x) -> terms, or a subclass of nn.Module, which every block instantiates: (config, alpha_shape,
    num_classes)."""
    loss: Callable[..., Any] = config.user_loss or imported("objective.function", str(config.function))
    name, is_class = str(config.function), isinstance(loss, type) and issubclass(loss, nn.Module)
    if is_class:
        inherits: bool = getattr(loss, "__init__") == nn.Module.__init__  # noqa: B009  # mypy knows another type
        _check_call(object if inherits else loss, name, "config, alpha_shape, num_classes")  # both take no argument
        loss = loss(config, alpha_shape, num_classes)
    _check_call(loss.forward if isinstance(loss, nn.Module) else loss, name, "alpha, scores, target, x")
    return UserLoss(loss, name)


def _check_call(function: Callable[..., Any], name: str, arguments: str) -> None:
    """Raises ConfigError unless ``function`` can be called with as many positional ``arguments``."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a callable of C, without a signature
        return
    try:
        signature.bind(*arguments.split())
    except TypeError as error:
        raise ConfigError(
            f"objective.function={name} cannot be called: {error}; expected a function (alpha, scores, target, x), or "
            f"a class of modules with such a forward, made as (config, alpha_shape, num_classes); use the parameters "
            f"({arguments})"
        ) from error


class UserLoss(nn.Module):
    """A user-defined loss ``terms``, whose result is checked."""

    def __init__(self, terms: Callable[..., Any], name: str) -> None:
        super().__init__()
        self.terms, self.name = terms, name

    def forward(self, alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor) -> dict[str, Tensor]:
        inputs = {"alpha": alpha, "scores": scores_BK, "x": x, "target.label_B": target.label_B}
        inputs |= {"target.beta_BC": target.beta_BC, "target.known_B": target.known_B}
        before = {name: (tensor._version, tensor.requires_grad) for name, tensor in inputs.items()}
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # whatever the function switches
            terms = self.terms(alpha, scores_BK, target, x)
        after = {name: (tensor._version, tensor.requires_grad) for name, tensor in inputs.items()}
        if changed := [name for name in inputs if after[name] != before[name]]:
            raise ConfigError(
                f"objective.function={self.name} changes {' and '.join(changed)} in place, which the pipeline reads "
                f"too; use a function that returns a new tensor, such as alpha.relu() for alpha.relu_()"
            )
        if not isinstance(terms, Mapping) or not terms:
            kind = "an empty dict" if isinstance(terms, Mapping) else f"a {type(terms).__name__}"
            raise ConfigError(f"objective.function={self.name}: {EXPECTED}, got {kind}; {EXAMPLE}")
        needs_gradient = self.training and torch.is_grad_enabled()
        for name, term in terms.items():
            if problem := _problem(name, term, needs_gradient):
                raise ConfigError(f"objective.function={self.name}: {problem}")
        return dict(terms)


def _problem(name: object, term: object, needs_gradient: bool) -> str | None:
    """What is wrong with a term of a user-defined loss. Its name becomes a field of metrics.jsonl."""
    if not isinstance(name, str) or not name:
        return f"expected text as the name of a term, got {name!r:.40}; use a word, such as 'pred'"
    if not name.isprintable():  # a checkpoint holds the last terms by their names, in UTF-8
        return f"a term is called {name!r:.40}; expected letters that can be printed; use a word, such as 'pred'"
    if name in RECORD_FIELDS:
        return (
            f"a term is called {name!r}, but metrics.jsonl has a field of this name; use another one, such as "
            f"'{name}_term'"
        )
    if not isinstance(term, Tensor):
        return f"{EXPECTED}, got a {type(term).__name__} as term {name!r}; {EXAMPLE}"
    if term.dim():
        return f"term {name!r}: expected a scalar, got the shape {list(term.shape)}; use its .mean()"
    if term.is_complex():
        return f"term {name!r}: expected a real number, got a complex one; use its .abs()"
    if needs_gradient and not term.requires_grad:
        return (
            f"term {name!r} depends on no parameter of the block; use a function of alpha or scores, without .detach() "
            f"or .item()"
        )
    return None
