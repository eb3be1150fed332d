"""The tables of ``bllpipe plan``: units and cuts."""

from __future__ import annotations

from bllpipe.models.partition import local_seconds, memory_bytes
from bllpipe.tools.planning.predict import Prediction, PredictionInputs, run_seconds
from bllpipe.tools.planning.profile import Profile, Timing
from bllpipe.utils.console import table

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
