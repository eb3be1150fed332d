"""What binds a rank to the elastic agent that started it, torchrun's or our launcher's. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

from bllpipe.errors import POINTLESS
from bllpipe.orphans import end_with_parent
from bllpipe.wire.environment import RankEnvironment

PROBE_SECONDS = 1.0


def follow_agent(environment: RankEnvironment) -> None:
    """From now on this rank ends with its agent, even if that is killed; at once if it is gone already.

    Between a rank's birth and this call its agent may die, and who has adopted the rank since is no proof: in a
    container torchrun itself is what adopts orphans elsewhere. But nobody answers where the agent's store was.
    """
    if not environment.has_agent:
        return
    end_with_parent(environment.launcher)
    if environment.on_one_machine and environment.agent_hosts_store and _refused(environment):
        os._exit(1)


def _refused(environment: RankEnvironment) -> bool:
    try:
        socket.create_connection((environment.master_addr, environment.master_port), PROBE_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # what it means, opening the store will tell
        return False
    return False


def end_torchrun(environment: RankEnvironment, exit_code: int) -> None:
    """Ends the torchrun that started this rank, if it would start it again and that would be pointless.

    It starts ranks again whatever their exit codes say, and a signal is the one thing that it listens to: at SIGTERM it
    ends, with the ranks that are left and with an exit code that is not 0. One rank of a machine may do so, as a second
    signal would interrupt torchrun while it ends the others. A rank that a script of the user's started leaves it.
    """
    started_by_torchrun = environment.has_agent and os.getsid(0) == os.getpid()  # torchrun gives each rank a session
    if exit_code in POINTLESS and environment.restarts_left > 0 and started_by_torchrun:
        with contextlib.suppress(ProcessLookupError):
            os.kill(os.getppid(), signal.SIGTERM)
