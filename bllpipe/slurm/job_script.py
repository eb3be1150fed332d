"""``bllpipe slurm``: whether the processes of a run fit on the nodes of a job, and the script that runs it."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from bllpipe.config import Config, load_config
from bllpipe.engines import topology
from bllpipe.errors import ConfigError
from bllpipe.launch import SPREAD, check_plan
from bllpipe.utils.console import show
from bllpipe.utils.files import output_file

LEAD_SECONDS = 300  # from the signal to the time limit: enough for a step and a checkpoint
DEFAULT_TIME = "04:00:00"
UNITS = (86_400, 3_600, 60, 1)  # seconds
LEAST_SECONDS = 60  # SLURM counts in minutes


@dataclass(frozen=True)
class Request:
    """What is asked of SLURM. ``seconds`` is the time limit that ``time`` writes down."""

    nodes: int
    gpus_per_node: int
    cpus_per_node: int
    time: str
    seconds: int
    partition: str | None = None
    account: str | None = None


def job_script(request: Request, arguments: Sequence[str]) -> str:
    """A script for sbatch that gives ``arguments`` to bllpipe.launch, and needs no other file of ours."""
    directives = "".join(f"#SBATCH --{directive}\n" for directive in _directives(request))
    common = files("bllpipe.slurm").joinpath("job.sh").read_text()
    return (
        "#!/usr/bin/env bash\n"
        "# Written by bllpipe slurm. Submit it with sbatch in the directory that it was written in.\n"
        f"{directives}\n{common}\n"
        f'run_bllpipe {shlex.join(arguments)} "$@"\n'
    )


def _directives(request: Request) -> list[str]:
    lead = min(LEAD_SECONDS, request.seconds // 4)
    return [
        "job-name=bllpipe",
        f"nodes={request.nodes}",
        "ntasks-per-node=1",
        *([f"gpus-per-node={request.gpus_per_node}"] if request.gpus_per_node else []),
        f"cpus-per-task={request.cpus_per_node}",
        f"time={request.time}",
        f"signal=TERM@{lead}",
        "requeue",
        "open-mode=append",
        "output=bllpipe-%j.out",
        *([f"partition={request.partition}"] if request.partition else []),
        *([f"account={request.account}"] if request.account else []),
    ]


def num_ranks(config: Config) -> int:
    """The processes of the run; an engine of a single process has one, whatever it holds."""
    return topology(config).world_size if config.engine in SPREAD else 1


def ranks_of_nodes(num_ranks: int, num_nodes: int) -> list[int]:
    """The ranks of each node: equal shares, what is left over on the last nodes, where the feedback is."""
    share, left = divmod(num_ranks, num_nodes)
    return [share + (node >= num_nodes - left) for node in range(num_nodes)]


def check_fit(config: Config, num_nodes: int, gpus_per_node: int | None) -> None:
    """Raises ConfigError unless every node gets a rank, and every rank that computes on a GPU has one of its own.

    ``gpus_per_node`` is None when nobody knows. Nodes without GPUs have room for any number of ranks, and so have GPUs
    that ranks are to share, with gloo between them.
    """
    ranks, needed = num_ranks(config), _num_gpus(config)
    if num_nodes > ranks:
        raise ConfigError(f"{_count(ranks, 'rank')} cannot be spread over {num_nodes} nodes; use --nodes {ranks}")
    if gpus_per_node == 0:
        _refuse_to_do_without(config)
    elif gpus_per_node is not None and needed > num_nodes * gpus_per_node and not _may_share(config):
        raise _too_few(config, needed, num_nodes, gpus_per_node)


def _may_share(config: Config) -> bool:
    """Whether several ranks may be on one GPU, which NCCL refuses."""
    return config.engine == "ranks" and config.backend.alpha == "gloo"


def _num_gpus(config: Config) -> int:
    """How many GPUs the run takes. The feedback does without one unless it asks for it."""
    if config.device == "cpu":
        return 0
    waives = config.engine in SPREAD and topology(config).has_feedback and config.feedback.device != "cuda"
    return num_ranks(config) - waives


def _refuse_to_do_without(config: Config) -> None:
    for key, device in (("device", config.device), ("feedback.device", config.feedback.device)):
        if device == "cuda":
            raise ConfigError(f"{key} is cuda, but the nodes have no GPUs; use --gpus-per-node 4, or --set {key}=cpu")


def _too_few(config: Config, needed: int, num_nodes: int, gpus_per_node: int) -> ConfigError:
    layout, found = topology(config), num_nodes * gpus_per_node
    blocks = _count(layout.num_blocks, "block") if layout.placement == "block" else _count(needed, "rank")
    feedback = needed - layout.num_blocks
    also = " and the feedback, whose feedback.device is cuda," if feedback else ""
    fewer = found - feedback if layout.placement in ("block", "stage", "replica") else 0
    return ConfigError(
        f"{blocks}{also} need {needed} GPUs, but {_count(num_nodes, 'node')} with {_count(gpus_per_node, 'GPU')} each "
        f"have {found}; use --nodes {-(-needed // gpus_per_node)}"
        + (f", or --set blocks={fewer}" if fewer > 0 else "")
        + (", or --set backend.alpha=gloo to let ranks share GPUs" if config.engine == "ranks" else "")
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def add_slurm(commands: Any) -> None:
    """Adds the subcommand to those of ``bllpipe``."""
    slurm = commands.add_parser("slurm", help="write a SLURM job script for a config")
    slurm.add_argument("--config", metavar="FILE", help="YAML file; without it: the handwritten digits")
    slurm.add_argument("--set", metavar="KEY=VALUE", dest="overrides", action="append", default=[])
    slurm.add_argument("--nodes", type=int, default=1, metavar="N", help="default: 1")
    slurm.add_argument("--gpus-per-node", type=int, default=4, metavar="G", help="default: 4; 0: compute on CPUs")
    slurm.add_argument(
        "--time", default=DEFAULT_TIME, metavar="HH:MM:SS", help=f"limit of each start (default: {DEFAULT_TIME})"
    )
    slurm.add_argument("--partition", metavar="P", help="of your site")
    slurm.add_argument("--account", metavar="A", help="of your project")
    slurm.add_argument("--run-dir", metavar="DIR", help="where the run's files go (default: runs/slurm-JOB)")
    slurm.add_argument("--out", metavar="FILE", help="write FILE instead of printing the script")
    slurm.set_defaults(run=_run)


def _run(options: argparse.Namespace, words: Sequence[str]) -> int:
    config = load_config(options.config, options.overrides)
    check_plan(config)
    text = job_script(_request(config, options), _arguments(options))
    if options.out is None:
        show(text, end="")
        return 0
    file = output_file(options.out)
    file.write_text(text)
    show(f"wrote {file} for {num_ranks(config)} ranks; submit it with: sbatch {Path(file)}")
    return 0


def _request(config: Config, options: argparse.Namespace) -> Request:
    for name, least in (("nodes", 1), ("gpus_per_node", 0)):
        if getattr(options, name) < least:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is {getattr(options, name)}; needed is at least {least}: {option} {least}")
    check_fit(config, options.nodes, options.gpus_per_node)
    most_ranks = max(ranks_of_nodes(num_ranks(config), options.nodes))
    return Request(
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        cpus_per_node=most_ranks * (config.cpu_threads + 1),  # one for the threads that receive and watch
        time=options.time,
        seconds=_seconds(options.time),
        partition=_name("--partition", options.partition),
        account=_name("--account", options.account),
    )


def _seconds(time: str) -> int:
    """SLURM's HH:MM:SS or D-HH:MM:SS in seconds."""
    found = re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]\d):([0-5]\d)", time)
    if not found:
        raise ConfigError(f"--time is {time!r}; needed is HH:MM:SS or D-HH:MM:SS, such as --time {DEFAULT_TIME}")
    seconds = sum(int(number or 0) * unit for number, unit in zip(found.groups(), UNITS, strict=True))
    if seconds < LEAST_SECONDS:
        raise ConfigError(f"--time is {time}; needed is a minute at least: --time 00:01:00")
    return seconds


def _name(option: str, name: str | None) -> str | None:
    """A name as SLURM knows them; nothing that could become another line of the script."""
    if name is not None and not re.fullmatch(r"[\w.,@+-]+", name, re.ASCII):
        raise ConfigError(f"{option} is {name!r}; needed is a name of letters, digits and . _ - + @ ,")
    return name


def _arguments(options: argparse.Namespace) -> list[str]:
    """The words of bllpipe.launch."""
    config = ["--config", options.config] if options.config else []
    overrides = [word for override in options.overrides for word in ("--set", override)]
    return [*config, *overrides, *(["--run-dir", options.run_dir] if options.run_dir else [])]
