"""``bllpipe plan``: measure the units of a network, find the best cuts, predict the rate of every engine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from math import inf
from os.path import expanduser
from pathlib import Path
from typing import Any

from bllpipe.cli.plan_cluster import add_cluster_options, check_cluster, show_cluster
from bllpipe.config import Config, to_yaml
from bllpipe.config.loader import add_config_options, config_from_options
from bllpipe.errors import ConfigError
from bllpipe.launch import check_number
from bllpipe.models.partition import (
    Link,
    UnitCost,
    best_cut,
    bounds,
    largest,
    local_cost,
    memory_bytes,
    part_size,
    stage_cost,
)
from bllpipe.tools.planning.predict import Prediction, PredictionInputs, predict_all, predict_local
from bllpipe.tools.planning.profile import Profile, cut_table, load_profile, rate_text, save_profile, unit_table
from bllpipe.tools.planning.replicas import ReplicaPlan, best_replicas, possible_shards, predict_replicas, replica_text
from bllpipe.utils.console import Bar, show, table
from bllpipe.utils.files import output_file, write_result

BLOCKS = (2, 4, 8, 16, 32, 64)
LINKS = (1.0, 10.0, 50.0)  # GB/s: a fast network, PCIe, NVLink
MICROBATCHES = (4, 8, 16)
REPETITIONS = 20
FEW_REPETITIONS = 7
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
    add_config_options(plan)
    plan.add_argument(
        "--blocks",
        type=int,
        nargs="+",
        metavar="P",
        help="numbers of devices (default: 2 4 8 ... up to the number of units)",
    )
    plan.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help="find the best cut and replicas for so many ranks, the feedback's included: into --blocks P blocks, or "
        "any number",
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
        "--profile",
        metavar="FILE",
        type=expanduser,
        help="use this profile if the file exists; otherwise measure, and write it",
    )
    add_cluster_options(plan)
    plan.add_argument("--json", metavar="FILE", type=expanduser, help="write profile, cuts and predictions to FILE")
    plan.add_argument("--write", metavar="FILE.yaml", type=expanduser, help="write the config with the best cut")
    plan.set_defaults(run=run)


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Prints the tables and writes the files of the options; returns the exit code."""
    config = config_from_options(options)
    _check(options)
    check_cluster(options, config)
    profile_file, json_file, yaml_file = (
        None if text is None else output_file(text) for text in (options.profile, options.json, options.write)
    )
    # the parts of a batch that engines compute at once, of at least 2 images for the sake of batch normalisation
    batch_size = config.data.batch_size
    shards, given = _shards(config, options.ranks), _with_counted(config, options.ranks)
    numbers_of_parts = (*options.microbatches, *(options.blocks or BLOCKS), *shards, given.num_shards)
    sizes = {part_size(batch_size, number) for number in numbers_of_parts}
    parts = sorted(sizes - {1, batch_size}, reverse=True)
    # end-to-end training is compared with bll, whose heads are measured
    local = replace(config, method="bll", engine="ranks") if config.is_end_to_end else config
    profile = _profile(local, options, profile_file, parts)
    steps = profile.total_steps(config)
    numbers = options.blocks or [number for number in BLOCKS if number <= len(profile.units)]
    shown = options.blocks or [config.num_parts]
    if (most := max([*numbers, *shown])) > len(profile.units):
        raise ConfigError(
            f"{most} blocks, but the network has only {len(profile.units)} units to cut between; "
            f"use --blocks {len(profile.units)} or less"
        )
    if options.cluster:
        show_cluster(options, config, profile, shown, json_file)
        return 0
    limit = inf if options.memory is None else options.memory * GIB
    by_link = [profile.inputs(rate, options.overhead / 1e3) for rate in options.link]
    show(unit_table(profile))
    for number in shown:
        show(f"\n{cut_table(profile, by_link[0], _best(profile, by_link[0], number, limit), steps)}")
    if max(given.block_replicas) > 1:
        show(f"\n{replica_text(profile, by_link[0], _given(given, profile, by_link[0]))}")
    best = _best_replicas(profile, by_link[0], options, shards, limit) if options.ranks else None
    if best is not None:
        show(f"\n{replica_text(profile, by_link[0], best)}")
    predictions = [[predict_all(each, number, options.microbatches, limit) for number in numbers] for each in by_link]
    unmeasured = [size for size in parts if size not in profile.parts]
    show(f"\n{prediction_table(by_link, numbers, predictions, unmeasured)}")
    for line in _left_out(profile, options):
        show(line)
    if json_file:
        _write_json(json_file, profile, by_link, predictions, best)
    if yaml_file and best is not None:
        _write_replicas(yaml_file, config, profile, best)
    elif yaml_file:
        _write_config(yaml_file, config, profile, by_link[0], shown[0], limit)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError for options out of range."""
    for name, values, least in (
        ("blocks", options.blocks or (), 1),
        ("microbatches", options.microbatches, 1),
        ("repetitions", [options.repetitions], 2),
        ("beside", [options.beside], 0),
        ("ranks", [] if options.ranks is None else [options.ranks], 2),
        ("overhead", [options.overhead], 0),
    ):
        if any(value < least for value in values):
            raise ConfigError(f"--{name} is {' '.join(map(str, values))}; expected at least {least}")
    for name, values in (("link", options.link), ("memory", [] if options.memory is None else [options.memory])):
        if not all(0 < value < inf for value in values):
            raise ConfigError(f"--{name} is {' '.join(f'{value:g}' for value in values)}; expected a number above 0")
    for option, wanted in (("--write writes", options.write), ("--ranks finds", options.ranks)):
        if wanted and len(options.blocks or ()) > 1:
            raise ConfigError(f"{option} one cut, but --blocks are {options.blocks}; name one, such as --blocks 4")


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


def _profile(config: Config, options: argparse.Namespace, file: Path | None, parts: Sequence[int]) -> Profile:
    """The profile in ``file``, or a new one that also measures ``parts`` of a batch."""
    if file is not None and file.exists():
        return load_profile(file, config)
    from bllpipe.data.registry import data_spec
    from bllpipe.tools.planning.profiler import background_load, measure  # torch

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


def _shards(config: Config, num_ranks: int | None) -> list[int]:
    """The numbers of shards to choose from: the config's, or all that fit if it leaves them open and replicas are asked
    for. ConfigError for a method without replicas."""
    if num_ranks is not None and config.is_end_to_end:
        raise ConfigError(
            f"--ranks is {num_ranks}, but method {config.method} learns end to end, without replicas of blocks; leave "
            f"--ranks out, or use --set method=bll"
        )
    if num_ranks is None or config.shards is not None:
        return [config.num_shards]
    return possible_shards(config.data.batch_size, num_ranks)


def _with_counted(config: Config, num_ranks: int | None) -> Config:
    """``config`` with the replicas that ``auto`` stands for on ``num_ranks`` ranks, or on as many as start here."""
    if config.replicas != "auto":
        return config
    check_number(num_ranks, config, None)
    from bllpipe.data.registry import data_spec
    from bllpipe.engines import launcher
    from bllpipe.engines.seats import Decision  # torch

    return Decision(config, launcher.num_ranks(config, num_ranks), data_spec(config)).made()


def _given(config: Config, profile: Profile, inputs: PredictionInputs) -> ReplicaPlan:
    """The prediction for the replicas of ``config`` and its cut; for ``blocks: balanced``, the best cut."""
    if isinstance(config.blocks, str):
        cut: Sequence[int] = _best(profile, inputs, config.num_blocks, inf).cut
    else:
        cut = [end for _, end in bounds(profile.names, config.blocks)[:-1]]
    return predict_replicas(inputs, cut, config.block_replicas, config.num_shards)


def _best_replicas(
    profile: Profile, inputs: PredictionInputs, options: argparse.Namespace, shards: Sequence[int], limit: float
) -> ReplicaPlan:
    """The best cut and replicas for ``--ranks``; ConfigError if there are none."""
    number = options.blocks[0] if options.blocks else None
    if number is not None and number >= options.ranks:
        raise ConfigError(
            f"--ranks {options.ranks}, but {number} blocks and the feedback need at least {number + 1}; use --ranks "
            f"{number + 1} or more"
        )
    best = best_replicas(inputs, options.ranks, shards, number, limit)
    if best is None:
        _best(profile, inputs, number or min(options.ranks - 1, len(profile.units)), limit)  # raises, with the reason
    assert best is not None, "a cut without replicas would be a plan"
    return best


def _best(profile: Profile, inputs: PredictionInputs, number: int, limit: float) -> Prediction:
    """The best cut into ``number`` blocks; a ConfigError names the memory that they need, and a number that fits."""
    if (best := predict_local(inputs, number, limit)) is not None:
        return best
    costs = profile.costs()
    least = _least_memory(costs, number)
    if least == inf:
        raise ConfigError(f"{number} blocks would leave one without parameters; use --blocks {number - 1} or less")
    enough = [more for more in range(number, len(costs) + 1) if _least_memory(costs, more) <= limit]
    more = f", or --blocks {enough[0]}" if enough else "; no larger number of blocks fits either"
    raise ConfigError(
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
    file: Path,
    profile: Profile,
    by_link: Sequence[PredictionInputs],
    predictions: Sequence[Sequence[Sequence[Prediction]]],
    replicas: ReplicaPlan | None,
) -> None:
    found = [
        {
            "link_bytes_per_second": inputs.link.bytes_per_second,
            "latency_seconds": inputs.link.latency,
            **asdict(prediction),
            "cut": profile.cut_names(prediction.cut),
        }
        for inputs, of_link in zip(by_link, predictions, strict=True)
        for of_number in of_link
        for prediction in of_number
    ]
    record: dict[str, Any] = {"profile": profile.to_json(), "predictions": found}
    if replicas is not None:
        record["replicas"] = {**asdict(replicas), "cut": profile.cut_names(replicas.prediction.cut)}
    write_result(file, json.dumps(record, indent=1) + "\n")
    show(f"wrote {file}")


def _write_config(
    file: Path, config: Config, profile: Profile, inputs: PredictionInputs, number: int, limit: float
) -> None:
    """Writes the best cut for the engine of ``config``: stages have no heads, so theirs may differ from blocks'."""
    if config.is_end_to_end:
        cut = best_cut(len(profile.units), number, stage_cost(inputs.units, inputs.link, limit))
        assert cut is not None, "a cut allowed for blocks with heads is allowed for stages without heads"
    else:
        cut = list(_best(profile, inputs, number, limit).cut)
    blocks: list[int | str] = [*profile.cut_names(cut)]
    write_result(file, _head(profile) + to_yaml(replace(config, blocks=blocks or 1)))
    show(f"wrote {file} with blocks: {blocks or 1}")


def _write_replicas(file: Path, config: Config, profile: Profile, best: ReplicaPlan) -> None:
    blocks: list[int | str] = [*profile.cut_names(best.prediction.cut)]
    made = replace(config, blocks=blocks or 1, replicas=list(best.replicas), shards=best.shards)
    write_result(file, _head(profile) + to_yaml(made))
    show(f"wrote {file} with blocks: {blocks or 1}, replicas: {made.replicas}, shards: {best.shards}")


def _head(profile: Profile) -> str:
    return f"# Cut by bllpipe plan on {profile.environment['processor']} ({profile.device}).\n"


def prediction_table(
    by_link: Sequence[PredictionInputs],
    numbers: Sequence[int],
    predictions: Sequence[Sequence[Sequence[Prediction]]],
    unmeasured: Sequence[int] = (),
) -> str:
    """Rates: a row per number of devices and engine, a column per link. The costs of parts of ``unmeasured`` sizes are
    taken as proportional to the size."""
    rows = []
    for index, number in enumerate(numbers):
        columns = [{_row_name(found): found for found in of_link[index]} for of_link in predictions]
        for name in dict.fromkeys(name for column in columns for name in column):
            rows.append([str(number), name, *(_cell(column.get(name)) for column in columns)])
    single = by_link[0].batch_size / by_link[0].single_seconds
    heads = ["devices", "engine", *(f"images/s at {rate_text(inputs)}" for inputs in by_link)]
    notes = NOTES.format(
        links=OVERLAPPING if by_link[0].link.overlaps else NOT_OVERLAPPING,
        parts=UNMEASURED.format(" or ".join(map(str, unmeasured))) if unmeasured else "",
    )
    return f"{table(heads, rows)}\none device: {single:,.0f} images/s\n{notes}"


def _row_name(prediction: Prediction) -> str:
    microbatches = "" if prediction.microbatches is None else f", {prediction.microbatches} microbatches"
    return ENGINES[prediction.engine] + microbatches


def _cell(prediction: Prediction | None) -> str:
    return "-" if prediction is None else f"{prediction.images_per_second:,.0f} ({prediction.speed_up:.2f}x)"
