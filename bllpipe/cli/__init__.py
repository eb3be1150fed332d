"""The ``bllpipe`` command: the parser of all subcommands, and ``main``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import bllpipe
from bllpipe import launch
from bllpipe.cli.check import add_check
from bllpipe.cli.checkpoints import add_checkpoints
from bllpipe.cli.data import add_data
from bllpipe.cli.env import add_completion, add_env
from bllpipe.cli.plan import add_plan
from bllpipe.cli.results import add_results, add_timeline
from bllpipe.cli.watch import add_health, add_watch
from bllpipe.errors import BllpipeError
from bllpipe.slurm.job_script import add_slurm
from bllpipe.utils.console import drop_unwritten, repair_standard_streams, warn
from bllpipe.utils.files import refused_paths


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    repair_standard_streams()
    options = _parser().parse_args(argv)
    try:
        with refused_paths():
            return int(options.run(options, argv[1:]))
    except BllpipeError as error:
        warn(str(error))
        return error.exit_code
    except BrokenPipeError:  # the reader has closed the pipe, as in ``bllpipe eval RUN | head``
        return 0
    finally:
        drop_unwritten()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bllpipe", description=bllpipe.__doc__)
    parser.add_argument("--version", action="version", version=f"bllpipe {bllpipe.__version__}")
    parser.set_defaults(parser=parser)  # ``bllpipe completion`` describes it
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="start a run; the same as python -m bllpipe.launch")
    launch.add_arguments(train)
    train.set_defaults(run=launch.launch)

    add_check(commands)
    add_results(commands)
    add_plan(commands)
    add_timeline(commands)
    add_checkpoints(commands)
    add_health(commands)
    add_slurm(commands)
    add_watch(commands)
    add_env(commands)
    add_data(commands)
    add_completion(commands)

    return parser
