"""The paper's Table 1: runs every method with several seeds, and compares the result with the published numbers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.records import read
from benchmarks.table_settings import DEFAULT_METHODS, METHODS, PAPER, SIZES, table_trials
from benchmarks.table_show import show
from benchmarks.trial_options import add_run_options, finish, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    return finish(lambda: _run(options) if options.command == "run" else _show(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="run what is not finished yet")
    runs.add_argument("--size", choices=list(SIZES), default="small")
    runs.add_argument("--data", nargs="+", choices=list(PAPER), help="default: all of this size")
    runs.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(DEFAULT_METHODS))
    runs.add_argument(
        "--engine", choices=["ranks", "threads", "sequential", "streams"], help="of methods that learn in blocks"
    )
    add_run_options(runs, out="runs/table.jsonl", runs="runs/table")
    shows = commands.add_parser("show", help="print the table")
    shows.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what --out has written, on any machine")
    shows.add_argument("--markdown", action="store_true")
    return parser


def _run(options: argparse.Namespace) -> int:
    which = (options.size, options.data, options.methods, options.seeds)
    return run(table_trials(*which, options.data_path, options.engine), options)


def _show(options: argparse.Namespace) -> int:
    print(show([record for file in options.files for record in read(file)], options.markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
