"""What a rank and the launcher that started it can do to each other, in real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bllpipe.distributed.torchrun import RankEnvironment, die_with_agent
from tests.support.waiting import PATIENCE

REPOSITORY = Path(__file__).parents[3]
STARTS = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: print("ended", flush=True))
subprocess.run([sys.executable, "-c", sys.argv[1]], start_new_session=sys.argv[2] == "torchrun")
"""
FAILS = """
from bllpipe.distributed.torchrun import stop_torchrun
from bllpipe.distributed.torchrun import RankEnvironment
environment = RankEnvironment(0, 1, 0, 1, "localhost", 1, True, restarts_left={left}, has_agent={agent})
stop_torchrun(environment, {code})
"""


def environment(port: int, launcher: int | None = None) -> RankEnvironment:
    return RankEnvironment(0, 1, 0, 1, "localhost", port, True, has_agent=True, launcher=launcher)


@pytest.mark.parametrize(
    ("code", "left", "agent", "starter", "ends"),
    [
        (2, 1, True, "torchrun", True),
        (4, 3, True, "torchrun", True),
        (5, 1, True, "torchrun", True),
        (6, 1, True, "torchrun", True),
        (1, 1, True, "torchrun", False),  # may not come back
        (3, 1, True, "torchrun", False),
        (2, 0, True, "torchrun", False),  # torchrun ends by itself, and says more
        (2, 1, False, "torchrun", False),  # somebody else started it
        (2, 1, True, "script", False),
    ],
)
def test_torchrun_is_ended_when_a_restart_is_pointless(
    code: int, left: int, agent: bool, starter: str, ends: bool
) -> None:
    rank = FAILS.format(code=code, left=left, agent=agent)
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", STARTS, rank, starter]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("ended\n" if ends else "", "")


def fork_and_follow(port: int) -> int:
    """The exit code of a process that follows the agent whose store is at ``port``; 7 if it goes on."""
    child = os.fork()
    if child == 0:
        die_with_agent(environment(port))
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_rank_whose_agent_is_gone_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as store:
        port = store.getsockname()[1]
        assert fork_and_follow(port) == 7
    assert fork_and_follow(port) == 1
