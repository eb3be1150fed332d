"""A rank that hangs is found, and named with its step; nobody is left over."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest

from tests.support import jobs
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.ranks
TIMEOUT = 4
SETTINGS = (*jobs.SMALL, "blocks=2", f"backend.timeout_seconds={TIMEOUT}", "log.every_steps=1")


@pytest.mark.parametrize(
    ("rank", "role", "point", "action", "found"),
    [
        (1, "block 1", "update", "stop", r"no heartbeat for \d+ s; last seen: block 1 at [\w ]*step \d+"),
        (0, "block 0", "forward", "sleep", r"block 0 at step 150, computing for \d+ s"),
        (2, "feedback", "sent", "hold", r"no heartbeat for \d+ s; last seen: lane 0 at [\w ]*step \d+"),
    ],
    ids=["stopped", "asleep", "holds-the-lock"],
)
def test_who_hangs_is_named(tmp_path: Path, rank: int, role: str, point: str, action: str, found: str) -> None:
    words = jobs.words(tmp_path / "run", *SETTINGS)
    fault = f"rank={rank},step=150,point={point},action={action},seconds=3600"
    launcher = jobs.started(words, fault=fault)
    wait_until(lambda: jobs.steps_done(tmp_path / "run") >= 150)
    ranks = list(jobs.rank_processes(launcher).values())
    text, _ = launcher.communicate(timeout=PATIENCE)
    messages = [line for line in text.splitlines() if line.startswith("bllpipe: rank")]
    assert len(messages) == 1 and re.match(rf"bllpipe: rank {rank} \({role}\): {found}", messages[0]), text
    status = jobs.read_json(tmp_path / "run" / "status.json")
    assert (status["status"], status["rank"], status["role"]) == ("failed", rank, role)
    _, alive = psutil.wait_procs(ranks, timeout=PATIENCE)
    assert not alive
