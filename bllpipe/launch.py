"""``python -m bllpipe.launch``: starts a run, as one of torchrun's ranks, or alone as the one that starts them."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import uuid
from collections.abc import Sequence

from bllpipe.config import Config, load_config
from bllpipe.config.schema import SYNCHRONOUS
from bllpipe.engines import Options, engine, topology
from bllpipe.engines.preflight import check_data, check_installed, check_plan
from bllpipe.errors import BllpipeError, ConfigError
from bllpipe.wire.environment import RankEnvironment, speaks_for_all

# A rank that fails before it has a store leaves the word to rank 0, and stays until rank 0 has spoken.
SILENT_SECONDS = 5.0
SPREAD = ("ranks", *SYNCHRONOUS)  # engines of several processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a run."""
    parser.add_argument("--config", metavar="FILE", help="YAML file; without it: the handwritten digits")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="overrides",
        action="append",
        default=[],
        help="override a key, e.g. epochs=3",
    )
    parser.add_argument(
        "--resume", default="never", metavar="auto|never|PATH", help="go on from the newest, or from this, checkpoint"
    )
    parser.add_argument(
        "--accept",
        metavar="KEY",
        nargs="+",
        action="extend",
        default=[],
        help="with --resume: go on although these keys (or sections, such as optimizer) differ from the checkpoint's",
    )
    parser.add_argument("--run-dir", metavar="DIR", help="where the run's files go (default: runs/<name>)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and runs it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bllpipe.launch", description=__doc__)
    add_arguments(parser)
    given = list(sys.argv[1:] if arguments is None else arguments)
    return launch(parser.parse_args(given), given)


def launch(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Runs what ``options`` say; ``arguments`` are the words they came from, to be handed to the ranks."""
    try:
        environment = RankEnvironment.read()
        config = load_config(options.config, options.overrides)
        chosen = Options(options.resume, options.run_dir, tuple(options.accept))
        chosen.check()
        _check_start(config, environment)
    except BllpipeError as error:
        return _fail_before_the_store(error)
    if config.engine in SPREAD and environment is None:
        return start_ranks(config, arguments)
    try:
        return engine(config.engine)(config, chosen)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # which the engine has explained
        return getattr(error, "exit_code", 1)


def _check_start(config: Config, environment: RankEnvironment | None) -> None:
    """Whether torchrun started what the engine needs, and whether packages, plan and data can work at all."""
    check_installed(config)
    check_plan(config)
    if environment is None or environment.rank == 0:
        check_data(config)
    if environment is None:
        return
    if config.engine in SPREAD:
        topology(config).check_world_size(environment.world_size)
    elif environment.world_size > 1:
        raise ConfigError(
            f"engine {config.engine} needs a single process, but torchrun started {environment.world_size}; "
            f"use python -m bllpipe.launch, or --set engine=ranks"
        )


def _fail_before_the_store(error: BllpipeError) -> int:
    """All ranks find the same error at the same time; only the first one prints it."""
    if speaks_for_all():
        print(f"bllpipe: {error}", file=sys.stderr, flush=True)
    else:
        threading.Event().wait(SILENT_SECONDS)
    return error.exit_code


def start_ranks(config: Config, arguments: Sequence[str]) -> int:
    """Starts a process a rank on this machine through torch's elastic launcher; returns the exit code of the first
    that failed, or 0."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the failing rank has said it better
    os.environ.setdefault("OMP_NUM_THREADS", str(config.cpu_threads))
    launch_config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=topology(config).world_size,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(launch_config, sys.executable)("-m", "bllpipe.launch", *arguments)
    except ChildFailedError as error:
        return max(error.get_first_failure()[1].exitcode, 1)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
