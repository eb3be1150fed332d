"""``bllpipe slurm``: writes a job script for a config."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bllpipe.config import Config, load_config
from bllpipe.engines.preflight import check_plan
from bllpipe.errors import ConfigError
from bllpipe.results.places import output_file
from bllpipe.slurm.fit import check_fit, num_ranks, ranks_of_nodes
from bllpipe.slurm.script import Request, job_script

DEFAULT_TIME = "04:00:00"
UNITS = (86_400, 3_600, 60, 1)  # seconds
LEAST_SECONDS = 60  # SLURM counts in minutes


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
        print(text, end="")
        return 0
    file = output_file(options.out)
    file.write_text(text)
    print(f"wrote {file} for {num_ranks(config)} ranks; submit it with: sbatch {Path(file)}")
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
