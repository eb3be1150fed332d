"""A local loss of the user's own: a function, or a class of modules, and what must be true of what it returns.

Shapes: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bllpipe.config.schema import ObjectiveConfig
from bllpipe.errors import ConfigError
from bllpipe.learn.local import Objective
from bllpipe.learn.named import imported
from bllpipe.ports import Target

NEEDED = 'needed is a dict of scalar tensors that add up to the loss, such as {"pred": cross_entropy(scores, label)}'
# What else stands in a line of metrics.jsonl, and what the progress of a run tells beside it.
RECORD_FIELDS = frozenset(
    (
        "phase",
        "step",
        "epoch",
        "rank",
        "role",
        "actor",
        "loss",
        "accuracy",
        "test_accuracy",
        "ensemble_accuracy",
        "lr",
        "alignment",
        "gradient_norm",
        "images_per_second",
        "waiting",
        "resident_bytes",
        "training_seconds",
    )
)


def own_objective(config: ObjectiveConfig, alpha_shape: Sequence[int], num_classes: int) -> Objective:
    """What ``objective.function`` names, or a script has given: a function (alpha, scores_BK, target, x) -> terms, or a
    subclass of nn.Module of which every block makes one: (config, alpha_shape, num_classes)."""
    found: Callable[..., Any] = config.given or imported("objective.function", str(config.function))
    is_class = isinstance(found, type) and issubclass(found, nn.Module)
    return Own(found(config, alpha_shape, num_classes) if is_class else found, str(config.function))


class Own(nn.Module):
    """``terms``, with a look at what it returns."""

    def __init__(self, terms: Objective, name: str) -> None:
        super().__init__()
        self.terms, self.name = terms, name

    def forward(self, alpha: Tensor, scores_BK: Tensor, target: Target, x: Tensor) -> dict[str, Tensor]:
        given = {"alpha": alpha, "scores": scores_BK, "x": x, "target.label_B": target.label_B}
        given |= {"target.beta_BC": target.beta_BC, "target.known_B": target.known_B}
        versions = {name: tensor._version for name, tensor in given.items()}
        terms = self.terms(alpha, scores_BK, target, x)
        if changed := [name for name, tensor in given.items() if tensor._version != versions[name]]:
            raise ConfigError(
                f"objective.function={self.name} changes {' and '.join(changed)} in place, which others read too; use "
                f"a function that returns a new tensor, such as alpha.relu() for alpha.relu_()"
            )
        if not isinstance(terms, Mapping) or not terms:
            what = "an empty dict" if isinstance(terms, Mapping) else f"a {type(terms).__name__}"
            raise ConfigError(f"objective.function={self.name} returned {what}; {NEEDED}")
        for name, term in terms.items():
            self._check_name(name)
            self._check(name, term)
        return dict(terms)

    def _check_name(self, name: object) -> None:
        """A term is a field of metrics.jsonl."""
        if not isinstance(name, str) or not name:
            raise ConfigError(
                f"objective.function={self.name}: expected text as the name of a term, got {name!r:.40}; use a word, "
                f"such as 'pred'"
            )
        if name in RECORD_FIELDS:
            raise ConfigError(
                f"objective.function={self.name}: a term is called {name!r}, but metrics.jsonl has a field of this "
                f"name; use another one, such as '{name}_term'"
            )

    def _check(self, name: str, term: object) -> None:
        if not isinstance(term, Tensor):
            raise ConfigError(f"objective.function={self.name}: term {name!r} is a {type(term).__name__}; {NEEDED}")
        if term.dim():
            raise ConfigError(
                f"objective.function={self.name}: term {name!r} has the shape {list(term.shape)}; needed is a scalar: "
                f"take its .mean()"
            )
        if term.is_complex():
            raise ConfigError(
                f"objective.function={self.name}: term {name!r} is a complex number; expected a real one, such as its "
                f".abs()"
            )
        if self.training and torch.is_grad_enabled() and not term.requires_grad:
            raise ConfigError(
                f"objective.function={self.name}: term {name!r} depends on no parameter of the block; needed is a "
                f"function of alpha or scores, without .detach() or .item()"
            )
