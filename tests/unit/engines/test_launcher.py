"""What the exit codes of ranks say about a job."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from bllpipe import errors
from bllpipe.engines.launcher import code_after_signal, describe_failure, exit_code_of
from bllpipe.errors import NOT_RETRYABLE, BllpipeError
from bllpipe.launch import EXIT_CODES
from bllpipe.topology import Topology

TERM, KILL = -signal.SIGTERM, -signal.SIGKILL


@pytest.mark.parametrize(
    ("failures", "code"),
    [
        ({}, 0),
        ({2: KILL, 0: 3, 1: TERM}, 1),  # the neighbour of one that was killed
        ({0: TERM, 1: 3}, 3),
        ({0: 1, 1: 3}, 1),
        ({0: 5, 1: 5, 2: TERM}, 5),
        ({0: 5, 1: KILL}, 5),  # by the agent, as it did not end
        ({0: TERM, 1: TERM}, 1),
    ],
)
def test_one_code_for_all(failures: dict[int, int], code: int) -> None:
    assert exit_code_of(failures) == code


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        ({0: 3, 2: KILL, 1: TERM}, "rank 2 (feedback) was killed by signal 9 (Killed)"),
        ({1: -signal.SIGABRT, 0: 3}, "rank 1 (block 1) was killed by signal 6 (Aborted)"),
        ({0: 1, 1: 1}, "the ranks ended with exit code 1"),
    ],
)
def test_who_is_to_blame(failures: dict[int, int], message: str) -> None:
    assert describe_failure(failures, Topology(2)) == message


@pytest.mark.parametrize(
    ("received", "failures", "status", "code"),
    [
        (signal.SIGTERM, {}, "preempted", 143),
        (signal.SIGINT, {}, "preempted", 130),
        (signal.SIGTERM, {}, "completed", 0),  # it came too late
        (signal.SIGTERM, {0: TERM}, "completed", 143),  # an old status: this attempt has not begun
        (signal.SIGTERM, {0: TERM, 1: TERM}, "running", 143),
        (signal.SIGINT, {0: KILL}, "running", 130),
        (signal.SIGTERM, {0: 4, 1: 4}, "failed", 4),  # the last checkpoint could not be written
        (signal.SIGTERM, {}, None, 143),
    ],
)
def test_after_a_signal(received: signal.Signals, failures: Any, status: str | None, code: int) -> None:
    assert code_after_signal(received, failures, status) == code


def test_what_comes_back_is_not_restarted() -> None:
    assert {error.__name__ for error in BllpipeError.__subclasses__() if error.exit_code in NOT_RETRYABLE} == {
        "ConfigError",
        "DataError",
        "CheckpointError",
        "NonFiniteError",
        "OutOfMemoryError",
        "OutputError",
        "NoProgressError",
    }


def test_the_help_names_every_exit_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BllpipeError)]
    codes = {kind.exit_code for kind in kinds}
    named = {int(line.split()[0]) for line in EXIT_CODES.splitlines() if line.startswith("    ")}
    assert named == {0, *codes}
