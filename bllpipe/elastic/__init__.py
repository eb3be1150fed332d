"""Between the shell and the ranks: starts them on this machine, passes signals on, starts them again after a failure.

Nothing here imports torch before the signals are in hand.
"""

from bllpipe.elastic.restarts import run_ranks

__all__ = ["run_ranks"]
