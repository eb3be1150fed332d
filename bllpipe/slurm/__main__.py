"""``python -m bllpipe.slurm NODES GPUS ARGUMENTS``: what a job script asks before it starts ranks, which is how many
they are, and where the run's files go.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bllpipe.config import load_config
from bllpipe.errors import BllpipeError, ConfigError
from bllpipe.launch import add_arguments, check_plan
from bllpipe.slurm.job_script import check_fit, num_ranks
from bllpipe.utils.console import show, warn


def main(arguments: Sequence[str]) -> int:
    """Prints ``RANKS RUN_DIRECTORY``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bllpipe.slurm", description=__doc__)
    parser.add_argument("nodes", type=int)
    parser.add_argument("gpus", type=int, help="of each node; 0: unknown")
    add_arguments(parser)
    try:
        show(_answer(parser.parse_args(arguments)))
    except BllpipeError as error:
        warn(str(error))
        return error.exit_code
    return 0


def _answer(options: argparse.Namespace) -> str:
    if options.resume != "auto":
        raise ConfigError(
            f"--resume is {options.resume}, but a job that SLURM may start again goes on from its newest checkpoint; "
            f"leave --resume out, and name the run with --run-dir"
        )
    if options.max_restarts:
        raise ConfigError(
            f"--max-restarts {options.max_restarts} is for python -m bllpipe.launch alone, but a job starts torchrun; "
            f"leave it out, and submit with PET_MAX_RESTARTS={options.max_restarts} sbatch ..."
        )
    config = load_config(options.config, options.overrides)
    check_plan(config)
    check_fit(config, options.nodes, options.gpus or None)
    return f"{num_ranks(config)} {options.run_dir}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
