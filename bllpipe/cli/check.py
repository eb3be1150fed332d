"""``bllpipe check``: what a config asks for, before anything is started."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bllpipe.config import Config, load_config, to_mapping, to_yaml
from bllpipe.config.schema import DataConfig
from bllpipe.data.catalog import PUBLISHED, DataSpec
from bllpipe.engines import topology
from bllpipe.launch import check_plan
from bllpipe.tools.planning.estimates import EdgeFigures, Figures, RankFigures
from bllpipe.topology import Topology
from bllpipe.utils.console import show, table

if TYPE_CHECKING:
    pass

NO_DATA = (
    "shapes, bytes and memory depend on the data, which are not here: data.name is {name}, data.path {path}; give the "
    "path where they are with --set data.path=PATH"
)
NEEDS_VALUES = "the network looks at values or devices, so that it cannot be counted without computing: {reason}"
RANK_HEADS = (
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
LOCAL_HEADS = ("local head of", "parameters", "of the block's", "operations", "of the block's")
EDGE_HEADS = ("edge", "tensors", "a message", "a step")
NOTE = """\
Bytes sent and received are those of a training step. Memory is an estimate: counted, not measured; torch itself, the
data, and what convolutions borrow for a moment come on top."""
FULL = "Activations are counted in fp32; precision.compute bf16 keeps some of them in half as much."


def add_check(commands: Any) -> None:
    """The subcommand and its options."""
    check = commands.add_parser("check", help="validate a config; count its messages, parameters and memory")
    check.add_argument("--config", metavar="FILE")
    check.add_argument("--set", metavar="KEY=VALUE", dest="overrides", action="append", default=[])
    shown = check.add_mutually_exclusive_group()
    shown.add_argument("--config-only", action="store_true", help="print the resolved config, with ranks and edges")
    shown.add_argument("--verbose", action="store_true", help="print the resolved config below the tables")
    shown.add_argument("--json", action="store_true", help="print one object: config, ranks, edges, in bytes")
    check.set_defaults(run=run)


def run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """Prints what was asked for; returns the exit code."""
    config = load_config(options.config, options.overrides)
    check_plan(config)
    if options.config_only:
        _print_config(config)
        return 0
    figures, unknown = _figures(config)
    if options.json:
        show(json.dumps(_to_json(config, figures, unknown), indent=1))
        return 0
    _print_tables(config, figures, unknown)
    if options.verbose:
        show("")
        _print_config(config)
    return 0


def _figures(config: Config) -> tuple[Figures | None, str | None]:
    """The figures, or why there are none, which is no error of the config."""
    if (spec := known_spec(config.data)) is None:
        return None, NO_DATA.format(name=config.data.name, path=config.data.path)
    from bllpipe.tools.planning.dry_run import NeedsRealTensors, count  # torch

    try:
        return count(config, spec), None
    except NeedsRealTensors as error:
        return None, NEEDS_VALUES.format(reason=error)


def _print_tables(config: Config, figures: Figures | None, unknown: str | None) -> None:
    layout = topology(config)
    show(headline(config, layout))
    if figures is None:
        show("\n".join([*layout_lines(layout), str(unknown)]))
    else:
        show(figures_table(figures, config))


def _print_config(config: Config) -> None:
    show(to_yaml(config) + "\n".join(layout_lines(topology(config))))


def _to_json(config: Config, figures: Figures | None, unknown: str | None) -> dict[str, Any]:
    """Without figures: ranks and edges alone."""
    layout = topology(config)
    found: dict[str, Any] = {"config": to_mapping(config), "unknown": unknown}
    if figures is not None:
        return found | figures.to_json()
    ranks = [{"rank": rank, "role": layout.role(rank)} for rank in range(layout.world_size)]
    edges = [{"kind": edge.kind, "src": edge.src, "dst": edge.dst} for edge in layout.edges()]
    return found | {"ranks": ranks, "edges": edges}


def headline(config: Config, layout: Topology) -> str:
    """What is to be trained, in a line."""
    ranks = f"{layout.world_size} rank{'' if layout.world_size == 1 else 's'}"
    return (
        f"{config.method}/{config.engine}: {config.model.name} on {config.data.name}, batches of "
        f"{config.data.batch_size}, {ranks}"
    )


def figures_table(figures: Figures, config: Config) -> str:
    """Steps, ranks, local heads and edges."""
    lines = [f"{figures.steps:,} steps, {figures.steps_per_epoch:,} an epoch", ""]
    lines += [table(RANK_HEADS, [_rank_row(figures, each) for each in figures.ranks])]
    if heads := [_head_row(each) for each in figures.ranks if each.head_parameters]:
        lines += ["", table(LOCAL_HEADS, heads)]
    if figures.edges:
        lines += ["", table(EDGE_HEADS, [_edge_row(edge) for edge in figures.edges])]
    notes = [NOTE, *_ensemble(figures), *([FULL] if config.precision.compute == "bf16" else [])]
    return "\n".join([*lines, "", *notes])


def _ensemble(figures: Figures) -> Iterator[str]:
    """What tests send more."""
    from rich.filesize import decimal as size

    if more := max((edge.ensemble_bytes for edge in figures.edges), default=0):
        yield (
            f"With evaluate.ensemble an alpha message of a test batch has {size(more)} more: the sums of the class\n"
            f"probabilities of all heads so far."
        )


def layout_lines(layout: Topology) -> Iterator[str]:
    """Ranks and edges alone."""
    yield "# ranks: " + ", ".join(f"{rank} {layout.role(rank)}" for rank in range(layout.world_size))
    yield "# edges: " + ", ".join(str(edge) for edge in layout.edges())


def _rank_row(figures: Figures, each: RankFigures) -> list[str]:
    from rich.filesize import decimal as size

    memory = each.memory
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.messages)
    carried = (figures.sent(each.rank), figures.received(each.rank))
    return [
        str(each.rank),
        each.role,
        f"{each.parameters:,}",
        *(size(number) for number in (memory.total, *parts, *carried)),
    ]


def _head_row(each: RankFigures) -> list[str]:
    """Shares of the block with its head; operations of one image's forward pass."""
    return [
        each.role,
        f"{each.head_parameters:,}",
        f"{each.head_parameters / each.parameters:.1%}",
        f"{each.head_operations:,}",
        f"{each.head_operations / max(1, each.operations):.1%}",
    ]


def _edge_row(edge: EdgeFigures) -> list[str]:
    from rich.filesize import decimal as size

    times = f"{edge.num_messages} x " if edge.num_messages > 1 else ""
    tensors = ", ".join(str(tensor) for tensor in edge.tensors)
    return [str(edge), tensors, times + size(edge.message_bytes), size(edge.step_bytes)]


def known_spec(data: DataConfig) -> DataSpec | None:
    """The sizes of the data; None where they are not on this machine and nobody has published them.

    Raises DataError for files that are there and cannot be trained on.
    """
    match data.name:
        case "synthetic":
            shape = (3, data.image_size, data.image_size)
            return DataSpec(data.synthetic_images, max(data.synthetic_images // 4, 1), shape, data.synthetic_classes)
        case "npz" | "imagefolder" if data.path is not None and Path(data.path).exists():
            return _spec_of_files(data)
        case name:
            return PUBLISHED.get(name)


def _spec_of_files(data: DataConfig) -> DataSpec:
    """Reads labels and sizes, but no image."""
    if data.name == "npz":
        from bllpipe.data.npz import open_archive  # NumPy

        return open_archive(str(data.path)).spec
    from bllpipe.data.image_folder import FolderImages  # torch

    return FolderImages(data).spec
