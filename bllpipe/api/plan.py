"""``bllpipe.make_plan``: the cost of the modules of a network on this machine, and the best cut."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import torch

from bllpipe.api.datasets import Data
from bllpipe.api.models import Model, whole_number
from bllpipe.api.train import TrainArguments, build_config
from bllpipe.config import Config
from bllpipe.data.catalog import DataSpec, check_user_data
from bllpipe.errors import ConfigError
from bllpipe.learn.block import build_segments
from bllpipe.models.partition import Link, bounds
from bllpipe.models.registry import network_units
from bllpipe.tools.planning.predict import Prediction, PredictionInputs, predict_local
from bllpipe.tools.planning.profile import Profile
from bllpipe.tools.planning.profiler import data_spec, measure, no_progress, present_device
from bllpipe.tools.planning.tables import cut_table, unit_table
from bllpipe.utils.torch_state import torch_defaults

REPETITIONS = 7
CPU = torch.device("cpu")


@dataclass(frozen=True)
class CutPlan:
    """The cut whose slowest block is fastest; printed, it is the tables of ``bllpipe plan``."""

    profile: Profile
    setting: PredictionInputs
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
        return f"{unit_table(self.profile)}\n\n{cut_table(self.profile, self.setting, self.best, self.steps)}"


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
    what a link between two blocks carries, on GPUs. Raises ConfigError for what cannot be measured or cut so.
    """
    repetitions, blocks = whole_number("repetitions", repetitions, 2), whole_number("blocks", blocks, 1)
    if not gigabytes_per_second > 0:
        raise ConfigError(f"gigabytes_per_second is {gigabytes_per_second}; expected a number above 0")
    made = build_config(
        model, data, TrainArguments(blocks=blocks, engine="sequential", config=config, settings=settings)
    )
    check_user_data(made.data)
    made = replace(made, model=replace(made.model, given=deepcopy(made.model.given)))
    spec = data_spec(made)
    _check_units(made, spec, blocks)
    profile = measure(made, spec, repetitions, say=no_progress)
    return _planned(made, profile, blocks, gigabytes_per_second)


def _planned(config: Config, profile: Profile, blocks: int, gigabytes_per_second: float) -> CutPlan:
    link = Link(gigabytes_per_second * 1e9, 10e-6, overlaps=not profile.is_of_a_processor)
    setting = PredictionInputs(profile.costs(), profile.batch_size, link, 0.0, {}, 1.0)
    best = predict_local(setting, blocks)
    if best is None:
        raise ConfigError(
            f"{blocks} blocks would leave one without parameters; use fewer, or put modules that have none into one "
            f"nn.Sequential with the next one"
        )
    return CutPlan(profile, setting, best, config.steps or config.epochs * profile.steps_per_epoch)


def _check_units(config: Config, spec: DataSpec, blocks: int) -> None:
    """Raises ConfigError unless a block can end after every module."""
    units = network_units(config.model, spec.image_shape[0], spec.num_classes, config.seed)
    bounds([unit.name for unit in units], blocks)
    for _ in build_segments([[unit] for unit in units], config, spec.image_shape, present_device(config)):
        pass  # building a segment checks it
