"""The ``bllpipe`` command: start a run, look at a config, describe the machine, fetch data."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import bllpipe
from bllpipe import launch
from bllpipe.config import load_config, to_yaml
from bllpipe.engines.preflight import check_plan
from bllpipe.errors import BllpipeError
from bllpipe.run.data.downloads import DEFAULT_PATH, DOWNLOADS
from bllpipe.topology import Topology


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        return int(options.run(options, given[1:]))
    except BllpipeError as error:
        print(f"bllpipe: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bllpipe", description=bllpipe.__doc__)
    parser.add_argument("--version", action="version", version=f"bllpipe {bllpipe.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="start a run; the same as python -m bllpipe.launch")
    launch.add_arguments(train)
    train.set_defaults(run=launch.launch)

    check = commands.add_parser("check", help="validate a config and print it with its ranks and edges")
    check.add_argument("--config", metavar="FILE")
    check.add_argument("--set", metavar="KEY=VALUE", dest="overrides", action="append", default=[])
    check.set_defaults(run=_check)

    env = commands.add_parser("env", help="versions and devices, as a bug report needs them")
    env.set_defaults(run=_env)

    data = commands.add_parser("data", help="data sets").add_subparsers(required=True, metavar="COMMAND")
    fetch = data.add_parser("fetch", help="download and verify a data set")
    fetch.add_argument("name", choices=sorted(DOWNLOADS))
    fetch.add_argument("--path", default=DEFAULT_PATH, metavar="FOLDER")
    fetch.set_defaults(run=_fetch)
    return parser


def _check(options: argparse.Namespace, words: Sequence[str]) -> int:
    config = load_config(options.config, options.overrides)
    check_plan(config)
    topology = Topology(config.num_blocks)
    print(to_yaml(config), end="")
    print("# ranks: " + ", ".join(f"{rank} {topology.role(rank)}" for rank in range(topology.world_size)))
    print("# edges: " + ", ".join(str(edge) for edge in topology.edges()))
    return 0


def _env(options: argparse.Namespace, words: Sequence[str]) -> int:
    from bllpipe.run.directory import environment

    print(json.dumps(environment(), indent=1))
    return 0


def _fetch(options: argparse.Namespace, words: Sequence[str]) -> int:
    from bllpipe.run.data.published import fetch

    fetch(options.name, options.path)
    print(f"{options.name} is complete in {options.path}")
    return 0
