"""The text of a job script that runs one config."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

LEAD_SECONDS = 300  # from the signal to the time limit: enough for a step and a checkpoint


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
