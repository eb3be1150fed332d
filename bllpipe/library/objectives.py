"""A local loss as a script has it: a function, a class of modules, or a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from bllpipe.errors import ConfigError
from bllpipe.learn.local import Objective
from bllpipe.library.names import given_name, importable_name

# Of a class every block makes its own: (config.objective, alpha_shape, num_classes).
OwnObjective = Objective | type[nn.Module] | str


def given_objective(objective: OwnObjective) -> tuple[dict[str, Any], Any]:
    """The keys that name it, and what stands in place of the name; ConfigError for what is no local loss."""
    if isinstance(objective, str):
        keys = {"method": "own", "objective.function": objective} if ":" in objective else {"method": objective}
        return keys, None
    if isinstance(objective, nn.Module) or not callable(objective):
        raise ConfigError(
            f"the objective is a {type(objective).__name__}; needed is a function (alpha, scores, target, x) that "
            f"returns a dict of terms, a class of modules with such a forward, of which every block makes its own, or "
            f"the name of a method, such as dgl"
        )
    name = importable_name(objective)
    given: Callable[..., Any] | None = None if name else objective
    return {"method": "own", "objective.function": name or given_name(objective)}, given
