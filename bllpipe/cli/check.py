"""``bllpipe check``: validate a config, and estimate messages, parameters and memory without starting a run."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bllpipe.config import Config, to_mapping, to_yaml
from bllpipe.config.loader import add_config_options, config_from_options
from bllpipe.config.schema import DataConfig
from bllpipe.data.catalog import DataSpec, spec_without_files
from bllpipe.engines import topology
from bllpipe.errors import ConfigError
from bllpipe.launch import check_number, check_plan
from bllpipe.tools.monitoring.tracking import check_trackers
from bllpipe.topology import Topology
from bllpipe.utils.console import show, table, warn

if TYPE_CHECKING:
    from bllpipe.tools.planning.estimates import EdgeEstimate, Estimates, RankEstimate  # torch

Item = TypeVar("Item")
MOST_ROWS = 32  # of more ranks, or edges, those that are alike share a row
NO_DATA = (
    "shapes, bytes and memory depend on the data, which were not found: data.name is {name}, data.path {path}; use "
    "--set data.path=PATH with the path of the data"
)
NEEDS_VALUES = "the network depends on values or devices, so it cannot be counted on the meta device: {reason}"
RANK_COLUMNS = (
    "rank",
    "role",
    "parameters",
    "memory",
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "messages",
    "sent",
    "received",
)
# of the local heads: parameters, and operations of the forward pass of one image
HEAD_COLUMNS = ("local head of", "parameters", "of the block's", "operations", "of the block's")
PLACE_COLUMNS = ("cut after", "alive, an image", "parameters before")  # in the unit that ends there
EDGE_COLUMNS = ("edge", "tensors", "a message", "a step")
NOTE = """\
Bytes sent and received are those of a training step. Memory is an estimate: counted, not measured; it does not include
torch itself, the data, and the workspaces of convolutions."""
PLACES = "Places at which the network can be cut, {number}: one tensor alone is alive there."
ENSEMBLE_NOTE = """\
With evaluate.ensemble an alpha message of a test batch has {size} more: the sums of the class
probabilities of all heads up to that block."""
BF16_NOTE = "Activations are counted in fp32; precision.compute bf16 stores some of them in half the bytes."


def add_check(commands: Any) -> None:
    """Adds the command ``check``."""
    check = commands.add_parser("check", help="validate a config; estimate its messages, parameters and memory")
    add_config_options(check)
    check.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help="with replicas=auto: the replicas for N ranks (default: as many as a run here starts)",
    )
    shown = check.add_mutually_exclusive_group()
    shown.add_argument("--config-only", action="store_true", help="print the resolved config, with ranks and edges")
    shown.add_argument("--verbose", action="store_true", help="print all ranks and edges, and the resolved config")
    shown.add_argument("--json", action="store_true", help="print one JSON object: config, ranks, edges, in bytes")
    check.set_defaults(run=run)


def run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Prints the tables, the config or JSON; returns the exit code."""
    config = config_from_options(options)
    check_plan(config)
    try:
        check_trackers(config.log.to)
    except ConfigError as error:  # as for data that are not here: the run may start on another machine
        warn(str(error))
    check_number(options.ranks, config, None)
    config = _with_seats(config, options.ranks)
    layout = topology(config)
    resolved = to_yaml(config) + layout_text(layout, options.verbose)
    if options.config_only:
        show(resolved)
        return 0
    estimates, unknown = _estimates(config)
    if options.json:
        show(json.dumps(_to_json(config, layout, estimates, unknown), indent=1))
        return 0
    ranks = f"{layout.world_size} rank{'' if layout.world_size == 1 else 's'}"
    show(
        f"{config.method}/{config.engine}: {config.model.name} on {config.data.name}, batches of "
        f"{config.data.batch_size}, {ranks}"
    )
    if estimates is None:
        show(f"{layout_text(layout, options.verbose)}\n{unknown}")
    else:
        show(estimates_table(estimates, config, options.verbose))
    if options.verbose:
        show(f"\n{resolved}")
    return 0


def _with_seats(config: Config, ranks: int | None) -> Config:
    """``config`` with the replicas that ``auto`` stands for on so many ranks of one node."""
    if config.replicas != "auto" or (spec := known_spec(config.data)) is None:
        return config
    from bllpipe.engines.launcher import num_ranks
    from bllpipe.engines.seats import Decision  # torch

    decision = Decision(config, num_ranks(config, ranks), spec)
    return decision.made() if decision.is_open else config


def _estimates(config: Config) -> tuple[Estimates | None, str | None]:
    """The estimates, or why there are none, which is not an error of the config."""
    if (spec := known_spec(config.data)) is None:
        return None, NO_DATA.format(name=config.data.name, path=config.data.path)
    from bllpipe.tools.planning.dry_run import NeedsRealTensors, count  # torch

    try:
        return count(config, spec), None
    except NeedsRealTensors as error:
        return None, NEEDS_VALUES.format(reason=error)


def _to_json(config: Config, layout: Topology, estimates: Estimates | None, unknown: str | None) -> dict[str, Any]:
    """Without estimates: ranks and edges alone."""
    found: dict[str, Any] = {"config": to_mapping(config), "unknown": unknown}
    if estimates is not None:
        return found | estimates.to_json()
    ranks = [{"rank": rank, "role": layout.role(rank)} for rank in range(layout.world_size)]
    edges = [{"kind": edge.kind, "src": edge.src, "dst": edge.dst} for edge in layout.edges()]
    return found | {"ranks": ranks, "edges": edges}


def estimates_table(estimates: Estimates, config: Config, verbose: bool = False) -> str:
    """The number of steps, and the tables of ranks, local heads and edges: of many ranks or edges, unless ``verbose``,
    those that are alike in one row."""
    from rich.filesize import decimal  # not for --help

    ranks = [_rank_row(estimates, group) for group in _alike(estimates.ranks, _place, verbose)]
    edges = [_edge_row(group) for group in _alike(estimates.edges, lambda edge: (edge.kind, edge.tensors), verbose)]
    heads = list(dict.fromkeys(_head_row(each) for each in estimates.ranks if each.head_parameters))
    lines = [f"{estimates.steps:,} steps, {estimates.steps_per_epoch:,} an epoch"]
    for columns, rows in ((RANK_COLUMNS, ranks), (HEAD_COLUMNS, heads), (EDGE_COLUMNS, edges)):
        lines += ["", table(columns, rows)] if rows else []
    if estimates.places:
        places = [[place.unit, str(list(place.shape)), f"{place.parameters:,}"] for place in estimates.places]
        lines += ["", PLACES.format(number=len(places)), "", table(PLACE_COLUMNS, places)]
    lines += ["", NOTE]
    if more := max((edge.ensemble_bytes for edge in estimates.edges), default=0):
        lines.append(ENSEMBLE_NOTE.format(size=decimal(more)))
    return "\n".join([*lines, *([BF16_NOTE] if config.precision.compute == "bf16" else [])])


def _alike(items: Sequence[Item], key: Callable[[Item], Any], verbose: bool) -> list[list[Item]]:
    """The items with the same key together, in the order of the first ones; each by itself if there are few."""
    if verbose or len(items) <= MOST_ROWS:
        return [[item] for item in items]
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _place(rank: RankEstimate) -> str:
    """The role of a rank without the number of its replica."""
    return re.sub(r"^(block \d+) replica \d+$", r"\1", rank.role)


def _rank_row(estimates: Estimates, group: Sequence[RankEstimate]) -> list[str]:
    """Of several ranks the most that one of them has."""
    from rich.filesize import decimal  # not for --help

    first, most = group[0], max(group, key=lambda rank: rank.memory.total).memory
    parts = most.total, most.weights, most.gradients, most.optimizer, most.activations, most.messages
    sent, received = (max(of(rank.rank) for rank in group) for of in (estimates.sent, estimates.received))
    others = f", {len(group)} replicas" if len(group) > 1 else ""
    role = f"{_place(first)}{others}" if others else first.role
    return [str(first.rank), role, f"{first.parameters:,}", *map(decimal, (*parts, sent, received))]


def _head_row(rank: RankEstimate) -> tuple[str, ...]:
    of_parameters = f"{rank.head_parameters / rank.parameters:.1%}"
    of_operations = f"{rank.head_operations / max(1, rank.operations):.1%}"
    return _place(rank), f"{rank.head_parameters:,}", of_parameters, f"{rank.head_operations:,}", of_operations


def _edge_row(group: Sequence[EdgeEstimate]) -> list[str]:
    """Of several edges the first one, and the bytes of all in a step."""
    from rich.filesize import decimal  # not for --help

    edge = group[0]
    times = f"{edge.num_messages} x " if edge.num_messages > 1 else ""
    others = f" and {len(group) - 1} like it" if len(group) > 1 else ""
    tensors = ", ".join(str(tensor) for tensor in edge.tensors)
    return [
        f"{edge}{others}",
        tensors,
        times + decimal(edge.message_bytes),
        decimal(sum(each.step_bytes for each in group)),
    ]


def layout_text(layout: Topology, verbose: bool = False) -> str:
    """Ranks and edges, without estimates; of many, unless ``verbose``, the first of each kind."""
    ranks = ", ".join(_with_others(_ranks_alike(layout, verbose)))
    edges = _alike(layout.edges(), lambda edge: edge.kind, verbose)
    return f"# ranks: {ranks}\n# edges: {', '.join(_with_others(edges))}"


def _ranks_alike(layout: Topology, verbose: bool) -> list[list[str]]:
    ranks = _alike(range(layout.world_size), layout.part_role, verbose)
    return [[f"{rank} {layout.role(rank)}" for rank in group] for group in ranks]


def _with_others(groups: Sequence[Sequence[object]]) -> list[str]:
    return [f"{group[0]}" + (f" and {len(group) - 1} like it" if len(group) > 1 else "") for group in groups]


def known_spec(data: DataConfig) -> DataSpec | None:
    """The sizes of the data; None if they depend on files that are not on this machine, or on a script.

    Raises DataError for files that exist but cannot be trained on.
    """
    if data.name in ("npz", "imagefolder") and (data.path is None or not Path(data.path).exists()):
        return None
    if data.name == "npz":
        from bllpipe.data.npz import open_archive  # NumPy

        return open_archive(str(data.path)).spec  # reads the labels, but no image
    if data.name == "imagefolder":
        from bllpipe.data.image_folder import FolderImages  # torch

        return FolderImages(data).spec  # lists the files, but reads no image
    return spec_without_files(data)
