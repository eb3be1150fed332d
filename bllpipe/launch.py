"""``python -m bllpipe.launch``: starts a run, as one of torchrun's ranks, or as the process that starts all ranks."""

from __future__ import annotations

import argparse
import math
import sys
import threading
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from os.path import expanduser  # a shell leaves the ~ of --option=~/x to us
from typing import get_args

from bllpipe.config import Config
from bllpipe.config.loader import add_config_options, config_from_options
from bllpipe.config.networks import residual_units, unit_name
from bllpipe.config.schema import PIPELINES, SYNCHRONOUS
from bllpipe.data.catalog import (
    DEFAULT_PATH,
    DOWNLOADS,
    check_obtainable,
    check_user_data,
    spec_without_files,
    split_folders,
)
from bllpipe.distributed.torchrun import (
    RankEnvironment,
    check_interfaces,
    die_with_agent,
    fault_text,
    has_agent,
    is_lead,
    stop_torchrun,
)
from bllpipe.engines import Callback, Options, Output, check_ranks, engine, topology
from bllpipe.engines.launcher import STOP_SECONDS, run_ranks
from bllpipe.errors import BllpipeError, ConfigError
from bllpipe.models.partition import bounds
from bllpipe.tools.monitoring.live_table import release
from bllpipe.tools.monitoring.progress import ProgressDisplay
from bllpipe.tools.monitoring.tracking import Tracking, check_trackers
from bllpipe.training.run_schedule import RunSchedule
from bllpipe.utils.console import drop_unwritten, repair_standard_streams, warn
from bllpipe.utils.files import RunLock, refused_paths
from bllpipe.utils.process import name_process

# Before there is a store, rank 0 alone prints an error that all ranks have. The others wait until it has.
SILENT_SECONDS = 5.0
SPREAD = ("ranks", *SYNCHRONOUS)  # engines of several processes
EXIT_CODES = """exit codes:
    0  completed, or ended where stop_at says
    1  a fault, in bllpipe, a module of yours or the machine
    2  an impossible configuration or command, or data that cannot be trained on
    3  a message did not arrive: a rank is gone or hangs
    4  a checkpoint is damaged, cannot be written, or belongs to another run
    5  NaN or Inf in training
    6  a file of the run cannot be written
    7  restarts came no further
    8  no memory is left for a rank
  129, 130, 143  stopped by SIGHUP, SIGINT, SIGTERM; --resume auto continues
2 and 4 to 8 are not restarted: they would come back. torchrun itself ends with 1 for all that is not 0; status.json in
the run directory says more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a run."""
    parser.epilog, parser.formatter_class = EXIT_CODES, argparse.RawDescriptionHelpFormatter
    add_config_options(parser)
    parser.add_argument(
        "--resume",
        default="never",
        metavar="auto|never|PATH",
        type=expanduser,
        help="resume from the newest, or from this, checkpoint",
    )
    parser.add_argument(
        "--accept",
        metavar="KEY",
        nargs="+",
        action="extend",
        default=[],
        help="with --resume: these keys (or sections, such as optimizer) may differ from the checkpoint's",
    )
    parser.add_argument(
        "--run-dir", metavar="DIR", type=expanduser, help="where the run's files go (default: runs/<name>)"
    )
    parser.add_argument(
        "--output",
        choices=get_args(Output),
        default="auto",
        help="auto (default): a table that is redrawn on a terminal, plain lines elsewhere; quiet: only how it ended",
    )
    parser.add_argument(
        "--quiet", dest="output", action="store_const", const="quiet", help="the same as --output quiet"
    )
    parser.add_argument(
        "--max-restarts",
        metavar="N",
        type=_count,
        default=0,
        help="without torchrun: start the ranks again after a failure, from the newest checkpoint, at most N times",
    )
    parser.add_argument(
        "--stop-seconds",
        metavar="N",
        type=_seconds,
        help=f"without torchrun: kill ranks that still run N seconds after a signal (default: {STOP_SECONDS:g}); more "
        f"where a checkpoint takes long to write",
    )
    parser.add_argument(
        "--ranks",
        metavar="N",
        type=int,
        help="with replicas=auto and without torchrun: start N ranks (default: one a GPU, or one a CPU, and the "
        "feedback's)",
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number of restarts, got {text!r}; use 0, 1, 2, ...")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}; use 60, 600, ...")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and runs it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bllpipe.launch", description=__doc__)
    add_arguments(parser)
    argv = list(sys.argv[1:] if arguments is None else arguments)
    repair_standard_streams()
    options = parser.parse_args(argv)
    try:
        return launch(options, argv)
    finally:
        drop_unwritten()


def launch(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Runs the job of ``options``, which were parsed from ``argv``, the arguments of the ranks."""
    environment = None
    try:
        environment = RankEnvironment.read()
        if environment is not None:
            die_with_agent(environment)
            name_process(f"bllpipe rank {environment.rank}")
        config = config_from_options(options)
        accept, callbacks = tuple(options.accept), choose_callbacks(config)
        lock = environment.lock() if environment else RunLock()
        chosen = Options(options.resume, options.run_dir, accept, options.output, callbacks=callbacks, lock=lock)
        chosen.check(environment)
        with refused_paths():
            check_start(config, environment)
        _check_launcher(options.max_restarts, options.stop_seconds, config, environment)
        check_number(options.ranks, config, environment)
    except BllpipeError as error:
        return fail_before_the_store(error, environment)
    if config.engine in SPREAD and environment is None:
        release_terminal = partial(release, sys.stdout if options.output in ("auto", "live") else None)
        try:
            return run_ranks(
                config,
                argv,
                options.max_restarts,
                release_terminal,
                options.ranks,
                options.stop_seconds or STOP_SECONDS,
            )
        finally:
            release_terminal()  # the rank that draws may have been killed
    try:
        return engine(config.engine)(config, chosen)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # which the engine has reported
        return getattr(error, "exit_code", 1)


def choose_callbacks(config: Config) -> tuple[Callback, ...]:
    """What a run displays, exports and injects. Raises ConfigError for faults in BLLPIPE_FAULT that are not allowed or
    not possible."""
    callbacks: list[Callback] = [ProgressDisplay()]
    if config.metrics.port is not None or config.metrics.textfile is not None:
        from bllpipe.tools.monitoring.exporter import PrometheusExport  # and torch, which takes seconds

        callbacks.append(PrometheusExport())
    if config.log.to:
        callbacks.append(Tracking(config.log.to))
    if text := fault_text():
        from bllpipe.tools.fault_injection import FaultInjection, parse_faults  # and torch

        callbacks.append(FaultInjection(parse_faults(text)))
    return tuple(callbacks)


def check_start(config: Config, environment: RankEnvironment | None) -> None:
    """Checks the number of ranks, the installed packages, the plan and the data, before anything is started."""
    check_installed(config)
    check_plan(config)
    if environment is None or environment.rank == 0:
        check_trackers(config.log.to)
        check_data(config)
    if environment is None and config.engine in SPREAD:
        check_interfaces(use_nccl=False)  # every rank checks again, on its own machine
    if environment is None:
        return
    if config.engine in SPREAD:
        check_ranks(config, environment.world_size)
    elif environment.world_size > 1:
        raise ConfigError(
            f"engine {config.engine} needs a single process, but torchrun started {environment.world_size}; "
            f"use python -m bllpipe.launch, or --set engine=ranks"
        )


def _check_launcher(
    max_restarts: int, stop_seconds: float | None, config: Config, environment: RankEnvironment | None
) -> None:
    """Ranks of bllpipe's own launcher have its options in their command lines; other ranks must not have them."""
    if environment is not None and environment.launcher is not None:
        return
    given = []
    if max_restarts:
        given.append((f"--max-restarts {max_restarts}", "starts ranks again", f"--max-restarts={max_restarts}"))
    if stop_seconds is not None:
        of_torchrun = f"--shutdown-timeout={math.ceil(stop_seconds)}"
        given.append((f"--stop-seconds {stop_seconds:g}", "is when ranks are killed", of_torchrun))
    for option, what, of_torchrun in given:
        if environment is not None:
            raise ConfigError(
                f"{option} is for python -m bllpipe.launch alone, but torchrun started this rank; "
                f"use torchrun {of_torchrun} -m bllpipe.launch"
            )
        if config.engine not in SPREAD:
            raise ConfigError(
                f"{option} {what}, but engine {config.engine} has one process; leave it out, or use --set engine=ranks"
            )


def check_number(ranks: int | None, config: Config, environment: RankEnvironment | None) -> None:
    """Raises ConfigError for --ranks if the config says how many there are, and for another number than torchrun's."""
    if ranks is None:
        return
    if config.replicas != "auto" or config.engine != "ranks":
        number = topology(config).world_size if config.engine in SPREAD else 1
        raise ConfigError(
            f"--ranks is {ranks}, but the number of ranks of this run, {number}, follows from blocks and replicas; "
            f"leave it out, or use --set replicas=auto"
        )
    if environment is not None and environment.world_size != ranks:
        raise ConfigError(
            f"--ranks is {ranks}, but torchrun started {environment.world_size}; use torchrun "
            f"--nproc_per_node={ranks} on one node, or leave --ranks out"
        )
    if (least := topology(config).world_size) > ranks:
        raise ConfigError(f"--ranks is {ranks}, but blocks and feedback need at least {least}; use more")


def fail_before_the_store(error: BllpipeError, environment: RankEnvironment | None) -> int:
    """All ranks find the same error at the same time; only the first one prints it. Without an agent, which ends the
    others then, a rank cannot know that there is a first one, and prints it when it is still here after a while."""
    if not is_lead():
        threading.Event().wait(SILENT_SECONDS)
    if is_lead() or not has_agent():
        warn(str(error))
    if environment is not None and environment.local_rank == 0:
        stop_torchrun(environment, error.exit_code)
    return error.exit_code


def check_plan(config: Config) -> None:
    """Raises ConfigError for a cut that the network does not allow, and for a batch or a warm-up that is too long for
    data whose sizes are known without their files."""
    if ":" not in config.model.name:
        is_cut = config.engine in PIPELINES or not config.is_end_to_end
        cuts = config.balanced or config.blocks if is_cut else 1
        bounds([unit_name(*unit) for unit in residual_units(config.model.name)], cuts)
    if (spec := spec_without_files(config.data)) is not None:
        RunSchedule.of(config, spec.num_train, spec.num_test)


def check_installed(config: Config) -> None:
    """Raises ConfigError for an engine or a network whose package is not installed. Only for the machine of the run."""
    if config.model.name.startswith("timm:") and find_spec("timm") is None:
        raise ConfigError(
            f"model.name={config.model.name} needs the package timm, which is not installed; use pip install "
            f"'bllpipe[timm]'"
        )
    if config.engine == "deepspeed" and find_spec("deepspeed") is None:
        raise ConfigError(
            "engine deepspeed needs the package deepspeed, which is not installed; use pip install 'bllpipe[deepspeed]'"
        )


def check_data(config: Config) -> None:
    """Raises DataError for files that are missing or cannot be trained on. Only for the machine that has the data."""
    check_user_data(config.data)
    if config.data.name == "npz":
        from bllpipe.data.npz import open_archive  # NumPy, which few runs need here

        archive = open_archive(str(config.data.path))
        RunSchedule.of(config, archive.spec.num_train, archive.spec.num_test)
        archive.check_floats()
    if config.data.name in DOWNLOADS:
        check_obtainable(config.data.name, config.data.path or DEFAULT_PATH)
    if config.data.name == "imagefolder":
        split_folders(str(config.data.path))


if __name__ == "__main__":
    sys.exit(main())
