"""Engine ``sequential``: one process, one thread, the blocks one after another. The reference for all others."""

from __future__ import annotations

import torch

from bllpipe.config import Config
from bllpipe.engines import Options
from bllpipe.engines.edges import Wires
from bllpipe.engines.job import Job
from bllpipe.engines.streams import ring_wires
from bllpipe.engines.together import local_wires, run_together
from bllpipe.run.rank import RankPart
from bllpipe.wire.streams import streams_on


def run(config: Config, options: Options) -> int:
    """Trains ``config`` in this thread."""
    return run_together(config, options, take_turns, wires_in_turn)


def wires_in_turn(job: Job, device: torch.device) -> Wires:
    """On a GPU what is sent stays where it is put, as its kernels like it, and a captured step finds it there."""
    return ring_wires(streams_on, job, device) if device.type == "cuda" else local_wires(job, device)


def take_turns(job: Job, parts: list[RankPart], wires: Wires) -> None:
    """In every round the lanes go first, as the blocks need their targets; then the blocks from front to back."""
    blocks = job.topology.num_blocks
    for entry in job.steps("all"):
        for part in (*parts[blocks:], *parts[:blocks]):
            for actor in part.actors:
                part.carry_out(actor, entry)
