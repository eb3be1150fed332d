"""``bllpipe slurm``: write a job script, after checking that the run fits on the nodes of the job."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from importlib.resources import files
from os.path import expanduser
from typing import Any

from bllpipe.config import Config
from bllpipe.config.loader import add_config_options, config_from_options
from bllpipe.engines import check_ranks, topology
from bllpipe.errors import ConfigError
from bllpipe.launch import SPREAD, check_number, check_plan
from bllpipe.topology import num_feedback_ranks
from bllpipe.utils.console import show
from bllpipe.utils.files import output_file, write_result

LEAD_SECONDS = 300  # from the signal to the time limit: enough for a step and a checkpoint
DEFAULT_TIME = "04:00:00"
UNITS = (86_400, 3_600, 60, 1)  # seconds of a day, hour, minute, second
MIN_SECONDS = 60  # SLURM counts in minutes


def job_script(sbatch_options: Sequence[str], arguments: Sequence[str]) -> str:
    """A script for sbatch that runs bllpipe.launch with ``arguments``. It contains job.sh, and needs no other file."""
    directives = "".join(f"#SBATCH --{option}\n" for option in sbatch_options)
    return (
        "#!/usr/bin/env bash\n"
        "# Written by bllpipe slurm. Submit it with sbatch in the directory that it was written in.\n"
        f"{directives}\n{files('bllpipe.slurm').joinpath('job.sh').read_text(encoding='utf-8')}\n"
        f'run_bllpipe {shlex.join(arguments)} "$@"\n'
    )


def num_ranks(config: Config, num_nodes: int = 1, gpus_per_node: int | None = None, asked: int | None = None) -> int:
    """The number of processes of the run; 1 for engines that run all blocks in one process. With ``replicas: auto`` as
    many as are ``asked`` for, or one for every GPU and those of the feedback; ConfigError if neither is known."""
    if config.engine not in SPREAD:
        return 1
    if config.replicas != "auto":
        return topology(config).world_size
    if asked is not None:
        return asked
    if not gpus_per_node or config.device == "cpu":
        raise ConfigError(
            "replicas is auto, but there are no GPUs to count the ranks by; use --ranks N with the number of ranks, or "
            "--set replicas=2"
        )
    gpus, feedback = num_nodes * gpus_per_node, config.feedback
    on_cpu = 0 if feedback.device == "cuda" else feedback.ranks or num_feedback_ranks(gpus, config.num_blocks)
    return gpus + on_cpu


def ranks_of_nodes(num_ranks: int, num_nodes: int) -> list[int]:
    """The number of ranks of each node: the same for all, plus one on the last nodes, where the feedback is."""
    share, left = divmod(num_ranks, num_nodes)
    return [share + (node >= num_nodes - left) for node in range(num_nodes)]


def check_fit(config: Config, num_nodes: int, gpus_per_node: int | None, asked: int | None = None) -> int:
    """The number of ranks. Raises ConfigError unless every node gets a rank, and every rank that computes on a GPU has
    its own.

    Feedback ranks compute on a CPU unless feedback.device is cuda. ``gpus_per_node`` is None if unknown. Nodes
    without GPUs hold any number of ranks, and so do GPUs that ranks share, which gloo allows and NCCL refuses.
    """
    ranks = num_ranks(config, num_nodes, gpus_per_node, asked)
    if config.engine in SPREAD:
        check_ranks(config, ranks)
    feedback_ranks = topology(config).num_feedback_ranks if config.engine in SPREAD else 0
    on_cpu = 0 if config.feedback.device == "cuda" else feedback_ranks
    num_gpus = 0 if config.device == "cpu" else ranks - on_cpu
    if num_nodes > ranks:
        raise ConfigError(f"{_count(ranks, 'rank')} cannot be spread over {num_nodes} nodes; use --nodes {ranks}")
    if gpus_per_node == 0:
        for key, device in (("device", config.device), ("feedback.device", config.feedback.device)):
            if device == "cuda":
                raise ConfigError(
                    f"{key} is cuda, but the nodes have no GPUs; use --gpus-per-node 4, or --set {key}=cpu"
                )
    may_share = config.engine == "ranks" and config.backend.alpha == "gloo"
    if gpus_per_node and num_gpus > num_nodes * gpus_per_node and not may_share:
        raise _too_few_gpus(config, num_gpus, num_nodes, gpus_per_node)
    return ranks


def _too_few_gpus(config: Config, num_gpus: int, num_nodes: int, gpus_per_node: int) -> ConfigError:
    layout, found = topology(config), num_nodes * gpus_per_node
    if config.replicas == "auto":
        return ConfigError(
            f"--ranks asks for {_count(num_gpus, 'GPU')}, but {_count(num_nodes, 'node')} with "
            f"{_count(gpus_per_node, 'GPU')} each have {found}; leave --ranks out, or use --nodes "
            f"{-(-num_gpus // gpus_per_node)}"
        )
    blocks = _count(layout.num_blocks, "block") if layout.placement == "block" else _count(num_gpus, "rank")
    feedback = num_gpus - len(layout.block_ranks)
    if len(layout.block_ranks) > layout.num_blocks:
        blocks += f" with {_count(len(layout.block_ranks), 'replica')}"
    also = " and the feedback, whose feedback.device is cuda," if feedback else ""
    has_one_each = len(layout.block_ranks) == layout.num_blocks
    fewer = found - feedback if has_one_each and layout.placement in ("block", "stage", "replica") else 0
    return ConfigError(
        f"{blocks}{also} need {num_gpus} GPUs, but {_count(num_nodes, 'node')} with "
        f"{_count(gpus_per_node, 'GPU')} each have {found}; use --nodes {-(-num_gpus // gpus_per_node)}"
        + (f", or --set blocks={fewer}" if fewer > 0 else "")
        + (", or --set backend.alpha=gloo to let ranks share GPUs" if config.engine == "ranks" else "")
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def add_slurm(commands: Any) -> None:
    """Adds the command ``slurm``."""
    slurm = commands.add_parser("slurm", help="write a SLURM job script for a config")
    add_config_options(slurm)
    slurm.add_argument("--nodes", type=int, default=1, metavar="N", help="default: 1")
    slurm.add_argument("--gpus-per-node", type=int, default=4, metavar="G", help="default: 4; 0 for a run on CPUs")
    slurm.add_argument(
        "--time", default=DEFAULT_TIME, metavar="HH:MM:SS", help=f"time limit of each start (default: {DEFAULT_TIME})"
    )
    slurm.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help="with replicas=auto: the number of ranks (default: one a GPU, and feedback)",
    )
    slurm.add_argument("--partition", metavar="P", help="partition of your site")
    slurm.add_argument("--account", metavar="A", help="account of your project")
    slurm.add_argument("--run-dir", metavar="DIR", type=expanduser, help="run directory (default: runs/slurm-JOB)")
    slurm.add_argument("--out", metavar="FILE", type=expanduser, help="write FILE instead of printing the script")
    slurm.set_defaults(run=_run)


def _run(options: argparse.Namespace, argv: Sequence[str]) -> int:
    config = config_from_options(options)
    check_plan(config)
    arguments = ["--config", options.config] if options.config else []
    arguments += [text for override in options.overrides for text in ("--set", override)]
    arguments += ["--ranks", str(options.ranks)] if options.ranks is not None else []
    arguments += ["--run-dir", options.run_dir] if options.run_dir else []
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise ConfigError(
                f"{argument} holds bytes that are not UTF-8, which a job script does not; use another name"
            )
    sbatch_options, ranks = _sbatch_options(config, options)
    text = job_script(sbatch_options, arguments)
    if options.out is None:
        show(text, end="")
        return 0
    file = output_file(options.out)
    write_result(file, text)
    show(f"wrote {file} for {ranks} ranks; submit it with: sbatch {file}")
    return 0


def _sbatch_options(config: Config, options: argparse.Namespace) -> tuple[list[str], int]:
    """The resources of the job as options of sbatch, and its number of ranks; ConfigError for impossible ones."""
    for name, least in (("nodes", 1), ("gpus_per_node", 0)):
        if getattr(options, name) < least:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is {getattr(options, name)}; expected at least {least}; use {option} {least}")
    check_number(options.ranks, config, None)
    ranks = check_fit(config, options.nodes, options.gpus_per_node, options.ranks)
    most_ranks = max(ranks_of_nodes(ranks, options.nodes))
    cpus = most_ranks * (config.cpu_threads + 1)  # one more for the receiver threads and the watchdog
    lead = min(LEAD_SECONDS, _seconds(options.time) // 4)
    names = {"partition": options.partition, "account": options.account}
    for name, value in names.items():  # text that could become another line of the script
        if value is not None and not re.fullmatch(r"[\w.,@+-]+", value, re.ASCII):
            raise ConfigError(f"--{name} is {value!r}; expected a name of letters, digits and . _ - + @ ,")
    found = [
        "job-name=bllpipe",
        f"nodes={options.nodes}",
        "ntasks-per-node=1",
        *([f"gpus-per-node={options.gpus_per_node}"] if options.gpus_per_node else []),
        f"cpus-per-task={cpus}",
        f"time={options.time}",
        f"signal=TERM@{lead}",
        "requeue",
        "open-mode=append",
        "output=bllpipe-%j.out",
        *(f"{name}={value}" for name, value in names.items() if value),
    ]
    return found, ranks


def _seconds(time: str) -> int:
    """SLURM's HH:MM:SS or D-HH:MM:SS in seconds."""
    found = re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]\d):([0-5]\d)", time)
    if not found:
        raise ConfigError(f"--time is {time!r}; expected HH:MM:SS or D-HH:MM:SS, such as --time {DEFAULT_TIME}")
    seconds = sum(int(number or 0) * unit for number, unit in zip(found.groups(), UNITS, strict=True))
    if seconds < MIN_SECONDS:
        raise ConfigError(f"--time is {time}; expected at least a minute; use --time 00:01:00")
    return seconds
