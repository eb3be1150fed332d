"""The tables of ``bllpipe plan``. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from bllpipe.plan.costs import local_seconds, memory_bytes
from bllpipe.plan.predict import Prediction, Setting, run_seconds
from bllpipe.plan.profile import Profile, Timing

MIB = 2**20
UNSTEADY = 0.25  # distance of the quartiles, as a share of the median
ENGINES = {"bll": "bll", "ddp": "ddp", "gpipe": "gpipe", "1f1b": "1f1b", "zb-h1": "zero-bubble (ZB-H1)"}
NOTES = """\
rate, and speed-up over one device that learns end to end, in steady state.
Messages{links}. Parts of a batch
cost what they were measured to{parts}. Beside its devices bll has a feedback rank, which a processor can carry."""
OVERLAPPING = " overlap with computing, ddp's all-reduce with backward"
CARRIED = ", and ddp's all-reduce, are carried by the processors that compute"
UNMEASURED = ", or their share of it if of {} images, which flatters all but bll"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first is flush left, the others flush right."""
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (heads, *rows)
    )


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
    beside = (
        f", {profile.contention:.2f} times as long as alone beside {profile.beside} others" if profile.beside else ""
    )
    machine = f"{profile.environment['processor']}, torch {profile.environment['torch']}{beside}"
    return (
        f"{profile.settings['model.name']}, batches of {profile.batch_size} on {profile.device} ({machine});\n"
        f"median of {profile.repetitions} repetitions after {profile.warm_up}, +- half the distance of the quartiles\n"
        + table(heads, rows)
        + _warning(profile)
    )


def _warning(profile: Profile) -> str:
    """Figures that another process has disturbed make a cut that fits no quiet machine."""
    timings = [timing for unit in profile.units for timing in (unit.forward, unit.backward, unit.head)]
    unsteady = sum(timing.upper_quartile - timing.lower_quartile > UNSTEADY * timing.median for timing in timings)
    if unsteady * 2 < len(timings):
        return ""
    return (
        f"\n{unsteady} of {len(timings)} timings spread by more than {100 * UNSTEADY:.0f} %: the device was busy with "
        f"something else; measure again when it is quiet, or raise --repetitions"
    )


def cut_table(profile: Profile, setting: Setting, best: Prediction, steps: int) -> str:
    """The best cut for local learning, block by block, and a run of ``steps`` steps with it."""
    blocks = setting.blocks(best.cut)
    rows = [
        [
            f"block {number}",
            f"{profile.names[first]} - {profile.names[end - 1]}",
            f"{1e3 * local_seconds(setting.units, first, end):.2f}",
            f"{100 * busy:.1f} %",
            f"{memory_bytes(setting.units, first, end) / MIB:.1f}",
        ]
        for number, ((first, end), busy) in enumerate(zip(blocks, best.busy, strict=True))
    ]
    names = ", ".join(profile.names[position - 1] for position in best.cut)
    rate = steps * setting.batch_size / run_seconds(setting, best.cut, steps)
    return (
        f"best cut into {best.num_blocks} at {_rate(setting)}: --set blocks='[{names}]'\n"
        + table(["", "units", "ms a step", "busy", "MiB"], rows)
        + f"\n{best.images_per_second:,.0f} images/s, {best.speed_up:.2f} times one device; "
        f"{rate:,.0f} over a run of {steps} steps that begins with an empty pipeline"
    )


def prediction_table(
    settings: Sequence[Setting],
    numbers: Sequence[int],
    predictions: Sequence[Sequence[Sequence[Prediction]]],
    unmeasured: Sequence[int] = (),
) -> str:
    """Rates of every engine: a row a number of devices and engine, a column a link. The cost of parts of ``unmeasured``
    sizes is a guess."""
    rows = []
    for index, number in enumerate(numbers):
        by_link = [{_row_name(found): found for found in of_link[index]} for of_link in predictions]
        for name in dict.fromkeys(name for found in by_link for name in found):
            rows.append([str(number), name, *(_cell(found.get(name)) for found in by_link)])
    single = settings[0].batch_size / settings[0].single_seconds
    heads = ["devices", "engine", *(f"images/s at {_rate(setting)}" for setting in settings)]
    notes = NOTES.format(
        links=OVERLAPPING if settings[0].link.overlaps else CARRIED,
        parts=UNMEASURED.format(" or ".join(map(str, unmeasured))) if unmeasured else "",
    )
    return f"{table(heads, rows)}\none device: {single:,.0f} images/s\n{notes}"


def _row_name(prediction: Prediction) -> str:
    microbatches = "" if prediction.microbatches is None else f", {prediction.microbatches} microbatches"
    return ENGINES[prediction.engine] + microbatches


def _cell(prediction: Prediction | None) -> str:
    return "-" if prediction is None else f"{prediction.images_per_second:,.0f} ({prediction.speed_up:.2f}x)"


def _rate(setting: Setting) -> str:
    return f"{setting.link.bytes_per_second / 1e9:g} GB/s"


def _ms(timing: Timing) -> str:
    return f"{1e3 * timing.median:.2f} +-{500 * (timing.upper_quartile - timing.lower_quartile):.2f}"
