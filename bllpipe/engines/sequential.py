"""Engine ``sequential``: one process, one thread, the blocks one after another. The reference for all others."""

from __future__ import annotations

from bllpipe.config import Config
from bllpipe.engines import Options
from bllpipe.engines.edges import Wires
from bllpipe.engines.job import Job
from bllpipe.engines.together import local_wires, run_together
from bllpipe.run.rank import RankPart


def run(config: Config, options: Options) -> int:
    """Trains ``config`` in this thread."""
    return run_together(config, options, take_turns, local_wires)


def take_turns(job: Job, parts: list[RankPart], wires: Wires) -> None:
    """In every round the lanes go first, as the blocks need their targets; then the blocks from front to back."""
    blocks = job.topology.num_blocks
    for entry in job.steps("all"):
        for part in (*parts[blocks:], *parts[:blocks]):
            for actor in part.actors:
                part.carry_out(actor, entry)
