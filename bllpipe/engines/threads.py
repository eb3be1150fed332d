"""Engine ``threads``: one process, a thread for every block and every lane."""

from __future__ import annotations

from bllpipe.config import Config
from bllpipe.engines import Options
from bllpipe.engines.actors import follow_all
from bllpipe.engines.edges import Dress, undressed
from bllpipe.engines.job import Job
from bllpipe.engines.together import local_wires, run_together
from bllpipe.run.rank import RankPart
from bllpipe.wire.local import LocalWires

ENDING_SECONDS = 10.0  # that threads have to end in, once all their waits are over: they hold the blocks


def run(config: Config, options: Options, dress: Dress = undressed) -> int:
    """Trains ``config`` in a thread for every actor."""
    return run_together(config, options, all_at_once, local_wires, dress)


def all_at_once(job: Job, parts: list[RankPart], wires: LocalWires) -> None:
    """Starts every actor and waits for all; the first error ends every wait and is raised."""
    follow_all(job, parts, on_error=wires.close, patience=ENDING_SECONDS)
