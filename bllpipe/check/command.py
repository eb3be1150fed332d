"""``bllpipe check``: what a config asks for, before anything is started."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from bllpipe.check.figures import Figures
from bllpipe.config import Config, load_config, to_mapping, to_yaml
from bllpipe.engines import topology
from bllpipe.engines.preflight import check_plan

NO_DATA = (
    "shapes, bytes and memory depend on the data, which are not here: data.name is {name}, data.path {path}; give the "
    "path where they are with --set data.path=PATH"
)
NEEDS_VALUES = "the network looks at values or devices, so that it cannot be counted without computing: {reason}"


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
        print(json.dumps(_to_json(config, figures, unknown), indent=1))
        return 0
    _print_tables(config, figures, unknown)
    if options.verbose:
        print()
        _print_config(config)
    return 0


def _figures(config: Config) -> tuple[Figures | None, str | None]:
    """The figures, or why there are none, which is no error of the config."""
    from bllpipe.check.known import known_spec

    if (spec := known_spec(config.data)) is None:
        return None, NO_DATA.format(name=config.data.name, path=config.data.path)
    from bllpipe.check.counting import Uncountable, count  # torch

    try:
        return count(config, spec), None
    except Uncountable as error:
        return None, NEEDS_VALUES.format(reason=error)


def _print_tables(config: Config, figures: Figures | None, unknown: str | None) -> None:
    from bllpipe.check.table import figures_table, headline, layout_lines

    layout = topology(config)
    print(headline(config, layout))
    if figures is None:
        print("\n".join([*layout_lines(layout), str(unknown)]))
    else:
        print(figures_table(figures, config))


def _print_config(config: Config) -> None:
    from bllpipe.check.table import layout_lines

    print(to_yaml(config) + "\n".join(layout_lines(topology(config))))


def _to_json(config: Config, figures: Figures | None, unknown: str | None) -> dict[str, Any]:
    """Without figures: ranks and edges alone."""
    layout = topology(config)
    found: dict[str, Any] = {"config": to_mapping(config), "unknown": unknown}
    if figures is not None:
        return found | figures.to_json()
    ranks = [{"rank": rank, "role": layout.role(rank)} for rank in range(layout.world_size)]
    edges = [{"kind": edge.kind, "src": edge.src, "dst": edge.dst} for edge in layout.edges()]
    return found | {"ranks": ranks, "edges": edges}
