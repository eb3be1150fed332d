"""``python -m bllpipe.slurm NODES GPUS ARGUMENTS``: called by a job script before it starts ranks. It checks the
arguments of ``bllpipe.launch``, and prints the number of ranks and the run directory.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

from bllpipe.config.loader import config_from_options
from bllpipe.errors import BllpipeError, ConfigError
from bllpipe.launch import add_arguments, check_number, check_plan
from bllpipe.slurm.job_script import check_fit
from bllpipe.utils.console import show, warn


def main(argv: Sequence[str]) -> int:
    """Prints ``RANKS RUN_DIRECTORY``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bllpipe.slurm", description=__doc__)
    parser.add_argument("nodes", type=int)
    parser.add_argument("gpus", type=int, help="of each node; 0: unknown")
    add_arguments(parser)
    options = parser.parse_args(argv)
    try:
        if options.resume != "auto":
            raise ConfigError(
                f"--resume is {options.resume}, but a job that SLURM may restart resumes from its newest checkpoint; "
                f"remove --resume, and name the run with --run-dir"
            )
        if options.max_restarts:
            raise ConfigError(
                f"--max-restarts {options.max_restarts} is for runs without torchrun, but a job uses it; remove the "
                f"option, and submit with PET_MAX_RESTARTS={options.max_restarts} sbatch ..."
            )
        if options.stop_seconds is not None:
            raise ConfigError(
                f"--stop-seconds {options.stop_seconds:g} is for runs without torchrun, but a job uses it; remove the "
                f"option, and submit with TORCH_ELASTIC_SHUTDOWN_TIMEOUT={math.ceil(options.stop_seconds)} sbatch ... "
                f"(default: 240)"
            )
        config = config_from_options(options)
        check_plan(config)
        check_number(options.ranks, config, None)
        show(f"{check_fit(config, options.nodes, options.gpus or None, options.ranks)} {options.run_dir}")
    except BllpipeError as error:
        warn(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
