"""``bllpipe.make_plan``: the cost of the modules of a network on this machine, and the best cut."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from bllpipe.api.datasets import Data
from bllpipe.api.models import Model, whole_number
from bllpipe.api.train import TrainArguments, build_config
from bllpipe.data.catalog import check_user_data
from bllpipe.data.registry import data_spec
from bllpipe.errors import ConfigError
from bllpipe.models.partition import bounds
from bllpipe.models.registry import network_units
from bllpipe.tools.planning.predict import Prediction, PredictionInputs, predict_local
from bllpipe.tools.planning.profile import Profile, cut_table, unit_table
from bllpipe.tools.planning.profiler import measure, no_progress
from bllpipe.utils.tensors import require_values, torch_defaults

REPETITIONS = 7


@dataclass(frozen=True)
class CutPlan:
    """The cut whose slowest block is fastest; printed, it is the tables of ``bllpipe plan``."""

    profile: Profile
    inputs: PredictionInputs
    best: Prediction
    steps: int

    @property
    def cut(self) -> list[int | str]:
        """The modules after which to cut, by name: what ``blocks`` takes. Empty for a single block."""
        return [self.profile.names[position - 1] for position in self.best.cut]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of forward, backward and update of every module for a batch, by name."""
        return {
            name: cost.forward + cost.backward + cost.update
            for name, cost in zip(self.profile.names, self.profile.costs(), strict=True)
        }

    def __str__(self) -> str:
        return f"{unit_table(self.profile)}\n\n{cut_table(self.profile, self.inputs, self.best, self.steps)}"


@torch_defaults()
def make_plan(
    model: Model | None,
    data: Data | None,
    blocks: int,
    *,
    config: str | PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    repetitions: int = REPETITIONS,
    gigabytes_per_second: float = 10.0,
) -> CutPlan:
    """Measures ``model`` here, with batches of random numbers of the data's shape, and cuts it into ``blocks``.

    The model itself is left as it is; the other arguments are those of ``bllpipe.train``. ``gigabytes_per_second`` is
    the bandwidth of a link between two blocks on GPUs. Raises ConfigError for a network that cannot be cut into so many
    blocks or after one of its modules, and for a batch or a warm-up that is too long for the data.
    """
    require_values()
    repetitions, blocks = whole_number("repetitions", repetitions, 2), whole_number("blocks", blocks, 1)
    if not gigabytes_per_second > 0:
        raise ConfigError(f"gigabytes_per_second is {gigabytes_per_second}; expected a number above 0")
    made = build_config(
        model, data, TrainArguments(blocks=blocks, engine="sequential", config=config, settings=settings)
    )
    check_user_data(made.data)
    made = replace(made, model=replace(made.model, user_model=deepcopy(made.model.user_model)))
    spec = data_spec(made)
    units = network_units(made.model, spec.image_shape, spec.num_classes, made.seed)
    bounds([unit.name for unit in units], blocks)
    profile = measure(made, spec, repetitions, say=no_progress)
    inputs = profile.inputs(gigabytes_per_second)
    best = predict_local(inputs, blocks)
    if best is None:
        raise ConfigError(
            f"{blocks} blocks would leave one without parameters; use fewer, or put modules that have none into one "
            f"nn.Sequential with the next one"
        )
    return CutPlan(profile, inputs, best, profile.total_steps(made))
