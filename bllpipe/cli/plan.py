"""``bllpipe plan``: measure the units of a network, find the best cuts, predict the rate of every engine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Any

from bllpipe.config import Config, load_config, to_yaml
from bllpipe.errors import ConfigError
from bllpipe.models.partition import Link, UnitCost, best_cut, largest, local_cost, memory_bytes, part_size, stage_cost
from bllpipe.tools.planning.predict import Prediction, PredictionInputs, predict_all, predict_local
from bllpipe.tools.planning.profile import Profile, load_profile, save_profile
from bllpipe.tools.planning.tables import cut_table, rate_text, unit_table
from bllpipe.utils.console import Bar, show, table
from bllpipe.utils.paths import write_result

BLOCKS = (2, 4, 8, 16, 32, 64)
LINKS = (1.0, 10.0, 50.0)  # GB/s: a fast network, PCIe, NVLink
MICROBATCHES = (4, 8, 16)
REPETITIONS = 20
FEW_REPETITIONS = 7
LATENCY = 10e-6  # seconds per message
GIB = 2**30
ENGINES = {"bll": "bll", "ddp": "ddp", "gpipe": "gpipe", "1f1b": "1f1b", "zb-h1": "zero-bubble (ZB-H1)"}
NOTES = """\
rate, and speed-up over one device that trains end to end, in steady state.
Messages{links}. The costs of parts
of a batch are measured{parts}. In addition to its devices bll has a feedback rank, for which a CPU is enough."""
OVERLAPPING = " overlap with computation, ddp's all-reduce with the backward pass"
NOT_OVERLAPPING = ", and ddp's all-reduce, use the processors that compute"
UNMEASURED = ", but proportional to their size for {} images, which favours all engines but bll"


def add_plan(commands: Any) -> None:
    """Adds the command ``plan``."""
    plan = commands.add_parser("plan", help="measure a network, find the best cuts, predict the rate of every engine")
    plan.add_argument("--config", metavar="FILE", help="YAML file (default: the handwritten digits)")
    plan.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="override a key, e.g. epochs=3",
    )
    plan.add_argument(
        "--blocks",
        type=int,
        nargs="+",
        metavar="P",
        help="numbers of devices (default: 2 4 8 ... up to the number of units)",
    )
    plan.add_argument(
        "--link",
        type=float,
        nargs="+",
        default=LINKS,
        metavar="GB/s",
        help="bandwidths between devices (default: 1 10 50)",
    )
    plan.add_argument(
        "--microbatches", type=int, nargs="+", default=MICROBATCHES, metavar="M", help="per batch (default: 4 8 16)"
    )
    plan.add_argument("--memory", type=float, metavar="GiB", help="memory limit of a block (estimated, not measured)")
    plan.add_argument(
        "--overhead",
        type=float,
        default=0.0,
        metavar="MS",
        help="overhead of an engine per forward and per backward pass (benchmarks.predictions finds it; default: 0)",
    )
    plan.add_argument(
        "--repetitions", type=int, default=REPETITIONS, metavar="N", help=f"of every timing (default: {REPETITIONS})"
    )
    plan.add_argument(
        "--beside",
        type=int,
        default=0,
        metavar="N",
        help="background processes during the measurement: use one less than the run has ranks on this processor",
    )
    plan.add_argument(
        "--profile", metavar="FILE", help="use this profile if the file exists; otherwise measure, and write it"
    )
    plan.add_argument("--json", metavar="FILE", help="write profile, cuts and predictions to FILE")
    plan.add_argument("--write", metavar="FILE.yaml", help="write the config with the best cut")
    plan.set_defaults(run=run)


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Prints the tables and writes the files of the options; returns the exit code."""
    config = load_config(options.config, options.overrides)
    _check(options)
    files = {name: _file(name, getattr(options, name)) for name in ("profile", "json", "write")}
    parts = _part_sizes(config.data.batch_size, [*options.microbatches, *(options.blocks or BLOCKS)])
    profile = _profile(_local(config), options, files["profile"], parts)
    numbers = options.blocks or [number for number in BLOCKS if number <= len(profile.units)]
    shown = options.blocks or [config.num_parts]
    if (most := max([*numbers, *shown])) > len(profile.units):
        raise ConfigError(
            f"{most} blocks, but the network has only {len(profile.units)} units to cut between; "
            f"use --blocks {len(profile.units)} or less"
        )
    limit = inf if options.memory is None else options.memory * GIB
    settings = _settings(profile, options)
    show(unit_table(profile))
    steps = config.steps or config.epochs * profile.steps_per_epoch
    for number in shown:
        best = _best(profile, settings[0], number, limit)
        show(f"\n{cut_table(profile, settings[0], best, steps)}")
    predictions = [[predict_all(each, number, options.microbatches, limit) for number in numbers] for each in settings]
    unmeasured = [size for size in parts if size not in profile.parts]
    show(f"\n{prediction_table(settings, numbers, predictions, unmeasured)}")
    for line in _left_out(profile, options):
        show(line)
    if files["json"]:
        _write_json(files["json"], profile, options, predictions)
    if files["write"]:
        _write_config(files["write"], config, profile, settings[0], shown[0], limit)
    return 0


def _part_sizes(batch_size: int, numbers: Sequence[int]) -> list[int]:
    """Sizes of the parts of a batch that engines compute at once, down to 2: batch normalisation needs as many."""
    sizes = {part_size(batch_size, number) for number in numbers}
    return sorted(sizes - {1, batch_size}, reverse=True)


def _settings(profile: Profile, options: argparse.Namespace) -> list[PredictionInputs]:
    """One per link."""
    links = [Link(rate * 1e9, LATENCY, overlaps=not profile.is_of_a_processor) for rate in options.link]
    overhead = options.overhead / 1e3
    costs, parts = profile.costs(), profile.part_costs()
    return [PredictionInputs(costs, profile.batch_size, link, overhead, parts, profile.contention) for link in links]


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError for options out of range."""
    for name, values, least in (
        ("blocks", options.blocks or (), 1),
        ("microbatches", options.microbatches, 1),
        ("repetitions", [options.repetitions], 2),
        ("beside", [options.beside], 0),
        ("overhead", [options.overhead], 0),
    ):
        if any(value < least for value in values):
            raise ConfigError(f"--{name} is {' '.join(map(str, values))}; expected at least {least}")
    for name, values in (("link", options.link), ("memory", [] if options.memory is None else [options.memory])):
        if not all(0 < value < inf for value in values):
            raise ConfigError(f"--{name} is {' '.join(f'{value:g}' for value in values)}; expected a number above 0")
    if options.write and len(options.blocks or ()) > 1:
        raise ConfigError(f"--write writes one cut, but --blocks are {options.blocks}; name one, such as --blocks 4")


def _left_out(profile: Profile, options: argparse.Namespace) -> Iterator[str]:
    """What the tables leave out, and why."""
    too_many = [] if options.blocks else [number for number in BLOCKS if number > len(profile.units)]
    too_small = [number for number in options.microbatches if number > profile.batch_size]
    if too_many:
        yield f"left out: {', '.join(map(str, too_many))} blocks, as the network has {len(profile.units)} units"
    if too_small:
        yield f"left out: {', '.join(map(str, too_small))} microbatches, as a batch has {profile.batch_size} images"
    if options.memory is not None:
        yield f"left out: cuts with a block of more than {options.memory:g} GiB; ddp, which is not cut, is not checked"


def _local(config: Config) -> Config:
    """The config to measure: for end-to-end training that of bll, with whose heads it is compared."""
    return replace(config, method="bll", engine="ranks") if config.is_end_to_end else config


def _file(name: str, text: str | None) -> Path | None:
    """The file of option ``name``, which need not exist."""
    if text is not None and Path(text).is_dir():
        raise ConfigError(f"--{name} {text} is a directory; expected the name of a file, such as {text}/FILE")
    if text is not None and not Path(text).parent.is_dir():
        raise ConfigError(f"--{name} {text} cannot be written: there is no directory {Path(text).parent}; create it")
    return None if text is None else Path(text)


def _profile(config: Config, options: argparse.Namespace, file: Path | None, parts: Sequence[int]) -> Profile:
    """The profile in ``file``, or a new one that also measures ``parts`` of a batch."""
    if file is not None and file.exists():
        return load_profile(file, config)
    from bllpipe.tools.planning.profiler import background_load, data_spec, measure  # torch

    spec, alone = data_spec(config), None
    if options.beside:
        with Bar("bllpipe plan, alone", quiet=True) as bar:
            alone = measure(config, spec, FEW_REPETITIONS, bar.at).seconds
    with background_load(config, spec, options.beside), Bar("bllpipe plan", quiet=True) as bar:
        profile = measure(config, spec, options.repetitions, bar.at, options.beside, parts)
    if alone is not None:
        profile = replace(profile, contention=max(1.0, profile.seconds / alone))
    if file is not None:
        save_profile(profile, file)
        show(f"wrote {file}\n")
    return profile


def _best(profile: Profile, setting: PredictionInputs, number: int, limit: float) -> Prediction:
    found = predict_local(setting, number, limit)
    if found is None:
        raise _too_little_memory(profile, number, limit)
    return found


def _too_little_memory(profile: Profile, number: int, limit: float) -> ConfigError:
    """An error that names the memory that ``number`` blocks need, and a number of blocks that fits."""
    costs = profile.costs()
    least = _least_memory(costs, number)
    if least == inf:
        return ConfigError(f"{number} blocks would leave one without parameters; use --blocks {number - 1} or less")
    enough = [more for more in range(number, len(costs) + 1) if _least_memory(costs, more) <= limit]
    more = f", or --blocks {enough[0]}" if enough else "; no larger number of blocks fits either"
    return ConfigError(
        f"--memory {limit / GIB:g}: the largest of {number} blocks needs {least / GIB:.3g} GiB at best; "
        f"use --memory {least / GIB * 1.01:.3g}{more}"
    )


def _least_memory(costs: Sequence[UnitCost], number: int) -> float:
    """Bytes of the largest of ``number`` blocks, for the cut that minimises them; infinite if no cut is allowed."""
    allowed = local_cost(costs, Link())

    def memory(first: int, end: int) -> float:
        return inf if allowed(first, end) == inf else float(memory_bytes(costs, first, end))

    cut = best_cut(len(costs), number, memory)
    return inf if cut is None else largest(cut, len(costs), memory)


def _write_json(
    file: Path, profile: Profile, options: argparse.Namespace, predictions: Sequence[Sequence[Sequence[Prediction]]]
) -> None:
    found = [
        {"link_bytes_per_second": rate * 1e9, "latency_seconds": LATENCY, **asdict(prediction)}
        for rate, of_link in zip(options.link, predictions, strict=True)
        for of_number in of_link
        for prediction in of_number
    ]
    for record in found:
        record["cut"] = [profile.names[position - 1] for position in record["cut"]]
    write_result(file, json.dumps({"profile": profile.to_json(), "predictions": found}, indent=1) + "\n")
    show(f"wrote {file}")


def _write_config(
    file: Path, config: Config, profile: Profile, setting: PredictionInputs, number: int, limit: float
) -> None:
    """Writes the best cut for the engine of ``config``: stages have no heads, so theirs may differ from blocks'."""
    if config.is_end_to_end:
        cut = best_cut(len(profile.units), number, stage_cost(setting.units, setting.link, limit))
        assert cut is not None, "a cut allowed for blocks with heads is allowed for stages without heads"
    else:
        cut = list(_best(profile, setting, number, limit).cut)
    blocks: list[int | str] = [profile.names[position - 1] for position in cut]
    head = f"# Cut by bllpipe plan on {profile.environment['processor']} ({profile.device}).\n"
    write_result(file, head + to_yaml(replace(config, blocks=blocks or 1)))
    show(f"wrote {file} with blocks: {blocks or 1}")


def prediction_table(
    settings: Sequence[PredictionInputs],
    numbers: Sequence[int],
    predictions: Sequence[Sequence[Sequence[Prediction]]],
    unmeasured: Sequence[int] = (),
) -> str:
    """Rates: a row per number of devices and engine, a column per link. The costs of parts of ``unmeasured`` sizes are
    taken as proportional to the size."""
    rows = []
    for index, number in enumerate(numbers):
        by_link = [{_row_name(found): found for found in of_link[index]} for of_link in predictions]
        for name in dict.fromkeys(name for found in by_link for name in found):
            rows.append([str(number), name, *(_cell(found.get(name)) for found in by_link)])
    single = settings[0].batch_size / settings[0].single_seconds
    heads = ["devices", "engine", *(f"images/s at {rate_text(setting)}" for setting in settings)]
    notes = NOTES.format(
        links=OVERLAPPING if settings[0].link.overlaps else NOT_OVERLAPPING,
        parts=UNMEASURED.format(" or ".join(map(str, unmeasured))) if unmeasured else "",
    )
    return f"{table(heads, rows)}\none device: {single:,.0f} images/s\n{notes}"


def _row_name(prediction: Prediction) -> str:
    microbatches = "" if prediction.microbatches is None else f", {prediction.microbatches} microbatches"
    return ENGINES[prediction.engine] + microbatches


def _cell(prediction: Prediction | None) -> str:
    return "-" if prediction is None else f"{prediction.images_per_second:,.0f} ({prediction.speed_up:.2f}x)"
