"""Starting the ranks, again after a failure that need not come back, and the exit code that says how it ended."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence

from bllpipe.config import Config
from bllpipe.elastic.stopping import Stopping
from bllpipe.engines import topology
from bllpipe.errors import POINTLESS
from bllpipe.topology import Topology

PATIENCE_SECONDS = 25.0  # ranks need less than 20 to stop at an agreed step


def run_ranks(config: Config, words: Sequence[str], max_restarts: int) -> int:
    """Starts a process a rank on this machine, and all of them again after a failure, ``max_restarts`` times at most;
    returns the exit code of the launcher. ``words`` are those of the command line."""
    with Stopping(PATIENCE_SECONDS) as stopping:
        from bllpipe.elastic.agent import Ranks  # and torch, which takes seconds: signals come first

        layout = topology(config)
        ranks = Ranks(layout.world_size, words, config.cpu_threads)
        stopping.ranks = ranks.processes
        failures: dict[int, int] = {}
        for attempt in range(max_restarts + 1):
            if attempt > 0:
                print(f"bllpipe: {culprit(failures, layout)}; restart {attempt} of {max_restarts}", file=sys.stderr)
            if stopping.signal is None:
                failures = ranks.run(attempt)
            if stopping.signal is not None:
                return code_after_signal(stopping.signal, failures, ranks.status())
            if not failures or verdict(failures) in POINTLESS:
                break
    return verdict(failures)


def verdict(failures: Mapping[int, int]) -> int:
    """One exit code for those of all ranks that failed. A rank ends with the code of the failure that was first, and
    the agent sends SIGTERM to those that have not noticed."""
    codes = {code for code in failures.values() if code != -signal.SIGTERM}
    if codes & POINTLESS:
        return max(codes & POINTLESS)
    return 1 if any(code < 0 for code in codes) else min(codes, default=1 if failures else 0)


def culprit(failures: Mapping[int, int], layout: Topology) -> str:
    """What happened, as far as exit codes tell: who was killed. Who failed has said so itself, and took the others
    with it."""
    killed = [rank for rank, code in failures.items() if code < 0 and code != -signal.SIGTERM]
    if not killed:
        return f"the ranks ended with exit code {verdict(failures)}"
    number = -failures[killed[0]]
    return f"rank {killed[0]} ({layout.role(killed[0])}) was killed by signal {number} ({signal.strsignal(number)})"


def code_after_signal(received: signal.Signals, failures: Mapping[int, int], status: str | None) -> int:
    """That of a shell for a process that a signal has ended, unless the run was complete, or broke while it stopped."""
    if verdict(failures) in POINTLESS:
        return verdict(failures)
    return 0 if status == "completed" and not failures else 128 + received
