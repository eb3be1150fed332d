"""Engine ``single``: one process, the whole network, learning end to end; what blocks are compared with."""

from __future__ import annotations

from bllpipe.config import Config
from bllpipe.engines import Options
from bllpipe.engines.sequential import take_turns
from bllpipe.engines.together import local_wires, run_together


def run(config: Config, options: Options) -> int:
    """Trains ``config`` in this thread."""
    return run_together(config, options, take_turns, local_wires)
