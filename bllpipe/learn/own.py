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
        terms = self.terms(alpha, scores_BK, target, x)
        if not isinstance(terms, Mapping) or not terms:
            what = "an empty dict" if isinstance(terms, Mapping) else f"a {type(terms).__name__}"
            raise ConfigError(f"objective.function={self.name} returned {what}; {NEEDED}")
        for name, term in terms.items():
            self._check(name, term)
        return dict(terms)

    def _check(self, name: str, term: object) -> None:
        if not isinstance(term, Tensor):
            raise ConfigError(f"objective.function={self.name}: term {name!r} is a {type(term).__name__}; {NEEDED}")
        if term.dim():
            raise ConfigError(
                f"objective.function={self.name}: term {name!r} has the shape {list(term.shape)}; needed is a scalar: "
                f"take its .mean()"
            )
        if torch.is_grad_enabled() and not term.requires_grad:
            raise ConfigError(
                f"objective.function={self.name}: term {name!r} depends on no parameter of the block; needed is a "
                f"function of alpha or scores, without .detach() or .item()"
            )
