"""A rank that hangs is found, and named with its step; nobody is left over."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import jobs
from tests.support.forks import ForkedPython
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.ranks
TIMEOUT, STEP = 8, 10
SETTINGS = (*jobs.TINY, f"backend.timeout_seconds={TIMEOUT}", "log.every_steps=1")
# Rank and role, where it hangs and how, and what is said of it.
HANGS = {
    "stopped": (1, "block 1", "update", "stop", r"no heartbeat for \d+ s; last seen: block 1 at [\w ]*step \d+"),
    "asleep": (0, "block 0", "forward", "sleep", rf"block 0 at step {STEP}, computing for \d+ s"),
    "holds-the-lock": (2, "feedback", "sent", "hold", r"no heartbeat for \d+ s; last seen: lane 0 at [\w ]*step \d+"),
}


@pytest.fixture(scope="module")
def under_way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, ForkedPython]]]:
    """All jobs at once, which wait for most of their time."""
    started = {}
    for name, (rank, _, point, action, _) in HANGS.items():
        folder = tmp_path_factory.mktemp(name) / "run"
        slow = f"rank={rank},step={STEP - 1},point={point},action=sleep,seconds=2"  # for a heartbeat of a step
        fault = f"{slow};rank={rank},step={STEP},point={point},action={action},seconds=3600"
        started[name] = folder, jobs.started(jobs.words(folder, *SETTINGS), fault=fault)
    yield started
    for _, launcher in started.values():
        for process in launcher.family():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("name", HANGS)
def test_who_hangs_is_named(under_way: dict[str, tuple[Path, ForkedPython]], name: str) -> None:
    run_dir, launcher = under_way[name]
    rank, role, _, _, found = HANGS[name]
    text, _ = launcher.communicate(timeout=PATIENCE)
    assert jobs.steps_done(run_dir) >= STEP
    messages = [line for line in text.splitlines() if line.startswith("bllpipe: rank")]
    assert len(messages) == 1 and re.match(rf"bllpipe: rank {rank} \({role}\): {found}", messages[0]), text
    status = jobs.read_json(run_dir / "status.json")
    assert (status["status"], status["rank"], status["role"]) == ("failed", rank, role)
    wait_until(lambda: launcher.family() == [])
