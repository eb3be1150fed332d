"""A profile: what was measured of every unit of a network, on which machine, and for which config; and the tables of
``bllpipe plan``: units and cuts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bllpipe.config import Config
from bllpipe.config.schema import ObjectiveConfig
from bllpipe.config.validation import field_types
from bllpipe.errors import ConfigError
from bllpipe.models.partition import Link, UnitCost, local_seconds, memory_bytes
from bllpipe.tools.planning.predict import Prediction, PredictionInputs, run_seconds
from bllpipe.training.run_schedule import RunSchedule
from bllpipe.utils.console import table
from bllpipe.utils.files import write_result

FORMAT = "bllpipe-profile-1"
LATENCY = 10e-6  # seconds per message
# The keys that measurements depend on.
SETTINGS = (
    *("model.name", "model.width", "model.stem", "model.args", "data.name", "data.batch_size"),
    *("method", "optimizer.name", "precision.compute", "precision.wire", "cpu_threads", "channels_last"),
    *(f"objective.{name}" for name in field_types(ObjectiveConfig)),
)


@dataclass(frozen=True)
class Timing:
    """Seconds: the median of the repetitions, and the quartiles around it."""

    median: float
    lower_quartile: float
    upper_quartile: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        lower, _, upper = quantiles(seconds, n=4, method="inclusive")
        return cls(median(seconds), lower, upper)


@dataclass(frozen=True)
class UnitProfile:
    """One unit and one batch; the timings are those of ``UnitCost``. ``memory_bytes`` are parameters, gradients, state
    of the optimiser, what the backward pass keeps, and the output; ``head_memory_bytes`` the same of a head."""

    name: str
    forward: Timing
    backward: Timing
    backward_without_input: Timing
    backward_of_input: Timing
    update: Timing
    head: Timing
    parameters: int
    output_bytes: int
    memory_bytes: int
    head_memory_bytes: int

    def cost(self) -> UnitCost:
        """Medians. A part of the backward pass is never longer than all of it, even if it was measured so."""
        backward = self.backward.median
        return UnitCost(
            self.forward.median,
            backward,
            min(self.backward_without_input.median, backward),
            min(self.backward_of_input.median, backward),
            self.update.median,
            self.head.median,
            self.parameters,
            self.output_bytes,
            self.memory_bytes,
            self.head_memory_bytes,
        )


@dataclass(frozen=True)
class Profile:
    """All units of a network. ``settings`` are the config's keys that measurements depend on; ``beside`` is the number
    of background processes, and ``contention`` how many times longer everything took for that; ``parts`` are the units
    again with fewer images, by their number."""

    units: tuple[UnitProfile, ...]
    settings: Mapping[str, Any]
    device: str
    warm_up: int
    repetitions: int
    steps_per_epoch: int
    environment: Mapping[str, Any]
    beside: int = 0
    parts: Mapping[int, tuple[UnitProfile, ...]] = field(default_factory=dict)
    contention: float = 1.0

    @property
    def names(self) -> list[str]:
        return [unit.name for unit in self.units]

    def cut_names(self, cut: Sequence[int]) -> list[str]:
        """The units after which ``cut`` cuts."""
        return [self.names[position - 1] for position in cut]

    @property
    def seconds(self) -> float:
        """Forward and backward of all units, with heads."""
        return sum(cost.forward + cost.backward + cost.head for cost in self.costs())

    @property
    def batch_size(self) -> int:
        return int(self.settings["data.batch_size"])

    def costs(self) -> list[UnitCost]:
        return [unit.cost() for unit in self.units]

    def inputs(self, gigabytes_per_second: float, overhead: float = 0.0) -> PredictionInputs:
        """What predictions start from, for links of this rate between the devices, and seconds of ``overhead`` per
        forward and per backward pass. CPUs transfer the messages themselves; GPUs compute meanwhile."""
        link = Link(gigabytes_per_second * 1e9, LATENCY, overlaps=self.device != "cpu")
        parts = {images: [unit.cost() for unit in units] for images, units in self.parts.items()}
        return PredictionInputs(self.costs(), self.batch_size, link, overhead, parts, self.contention)

    def total_steps(self, config: Config) -> int:
        """Training steps of a run of ``config`` on the data of the profile; ConfigError if the warm-up is longer."""
        return RunSchedule.of(config, self.steps_per_epoch * self.batch_size, num_test=0).total_steps

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Profile:
        parts = {int(images): _units(units) for images, units in record.get("parts", {}).items()}
        rest = {each.name: record[each.name] for each in fields(cls)[1:] if each.name in record}
        return cls(_units(record["units"]), **{**rest, "parts": parts})


def _units(records: Sequence[Mapping[str, Any]]) -> tuple[UnitProfile, ...]:
    timings = [each.name for each in fields(UnitProfile) if each.type == "Timing"]
    return tuple(UnitProfile(**{**unit, **{name: Timing(**unit[name]) for name in timings}}) for unit in records)


def settings_of(config: Config) -> dict[str, Any]:
    """What a profile of ``config`` depends on."""
    return {key: attrgetter(key)(config) for key in SETTINGS}


def save_profile(profile: Profile, file: Path) -> None:
    write_result(file, json.dumps(profile.to_json(), indent=1) + "\n")


def load_profile(file: Path, config: Config) -> Profile:
    """The profile in ``file``; ConfigError when it is none, or one of another config."""
    try:
        record = json.loads(file.read_bytes())
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}, not {FORMAT!r}")
        profile = Profile.from_json(record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} is not a profile: {error!r}; expected a file that bllpipe plan --profile FILE has written; "
            f"use the name of a new file to measure"
        ) from error
    now = settings_of(config)
    changed = [key for key, then in profile.settings.items() if then != now.get(key)]
    if changed:
        lines = "".join(f"\n  {key}: {profile.settings[key]!r} then, {now.get(key)!r} now" for key in changed)
        raise ConfigError(
            f"{file} was measured with another configuration:{lines}\n"
            f"give these keys their old values, or name a new file to measure again"
        )
    return profile


MIB = 2**20
UNSTEADY = 0.25  # distance of the quartiles, as a share of the median


def unit_table(profile: Profile) -> str:
    """What was measured of every unit, and on what."""
    rows = [
        [
            unit.name,
            _ms(unit.forward),
            _ms(unit.backward),
            _ms(unit.update),
            _ms(unit.head),
            f"{unit.output_bytes / 1e6:.3f}",
            f"{unit.parameters:,}",
            f"{unit.memory_bytes / MIB:.1f}",
        ]
        for unit in profile.units
    ]
    heads = ["unit", "forward ms", "backward ms", "update ms", "head ms", "MB out", "parameters", "MiB"]
    machine = f"{profile.environment['processor']}, torch {profile.environment['torch']}"
    if profile.beside:
        machine += f", {profile.contention:.2f} times as long as alone, background processes: {profile.beside}"
    return (
        f"{profile.settings['model.name']}, batches of {profile.batch_size} on {profile.device} ({machine});\n"
        f"median of {profile.repetitions} repetitions after {profile.warm_up}, +- half the distance of the quartiles\n"
        + table(heads, rows)
        + _warning(profile)
    )


def _warning(profile: Profile) -> str:
    """A warning if another process seems to have disturbed the measurements: the cut would not suit an idle machine."""
    timings = [timing for unit in profile.units for timing in (unit.forward, unit.backward, unit.head)]
    unsteady = sum(timing.upper_quartile - timing.lower_quartile > UNSTEADY * timing.median for timing in timings)
    if unsteady * 2 < len(timings):
        return ""
    return (
        f"\n{unsteady} of {len(timings)} timings spread by more than {100 * UNSTEADY:.0f} %: the device was busy with "
        f"something else; measure again when it is quiet, or raise --repetitions"
    )


def cut_table(profile: Profile, inputs: PredictionInputs, best: Prediction, steps: int) -> str:
    """The best cut for local learning, block by block, and a run of ``steps`` steps with it."""
    blocks = inputs.blocks(best.cut)
    rows = [
        [
            f"block {number}",
            f"{profile.names[first]} - {profile.names[end - 1]}",
            f"{1e3 * local_seconds(inputs.units, first, end):.2f}",
            f"{100 * busy:.1f} %",
            f"{memory_bytes(inputs.units, first, end) / MIB:.1f}",
        ]
        for number, ((first, end), busy) in enumerate(zip(blocks, best.busy, strict=True))
    ]
    names = ", ".join(profile.names[position - 1] for position in best.cut)
    rate = steps * inputs.batch_size / run_seconds(inputs, best.cut, steps)
    return (
        f"best cut into {best.num_blocks} at {rate_text(inputs)}: --set blocks='[{names}]'\n"
        + table(["", "units", "ms a step", "busy", "MiB"], rows)
        + f"\n{best.images_per_second:,.0f} images/s, {best.speed_up:.2f} times one device; "
        f"{rate:,.0f} over a run of {steps} steps that begins with an empty pipeline"
    )


def rate_text(inputs: PredictionInputs) -> str:
    return f"{inputs.link.bytes_per_second / 1e9:g} GB/s"


def _ms(timing: Timing) -> str:
    return f"{1e3 * timing.median:.2f} +-{500 * (timing.upper_quartile - timing.lower_quartile):.2f}"
