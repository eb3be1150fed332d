"""The absence of the lock: nobody waits for a backward pass behind it, and a slow block holds up no block before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import jobs

STEPS, SLOW = 30, 3
LAST = STEPS - 1
LANES = ["lane layer1.1", "lane layer2.1", "lane layer3.1"]  # of the blocks before the slow one
FIRST = [*(f"block {block}" for block in range(SLOW)), *LANES]
Times = dict[tuple[str, int], float]


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[Times]:
    """When each rank began and finished which step; block 3 does not end its first before the others end their last. If
    one of them waited for it, the job would not come to its end."""
    run_dir = tmp_path_factory.mktemp("no-lock") / "run"
    settings = (*jobs.RESNET, f"steps={STEPS}", f"backend.ring={STEPS}", "evaluate.every_epochs=0")
    arguments = [str(run_dir), str(SLOW), str(LAST), ",".join(FIRST), *settings, "checkpoint.every_steps=0"]
    jobs.succeed(jobs.ranks(5, arguments, module="tests.support.slow_job"))
    files = [Path(f"{run_dir}-events-{rank}.json") for rank in range(5)]
    return [{(name, step): when for name, step, when in json.loads(file.read_text())} for file in files]


@pytest.mark.ranks
def test_blocks_before_a_slow_one_finish_early(events: list[Times]) -> None:
    for block in range(SLOW):
        assert events[block]["updated", LAST] < events[SLOW]["updated", 0], f"block {block} waited for block {SLOW}"


@pytest.mark.ranks
def test_lanes_of_the_blocks_before_a_slow_one_finish_early(events: list[Times]) -> None:
    lanes = {name: when for (name, step), when in events[4].items() if step == LAST}
    assert sorted(lanes) == [*LANES, "lane layer4.1"]
    assert all(lanes[name] < events[SLOW]["updated", 0] < lanes["lane layer4.1"] for name in LANES)


@pytest.mark.ranks
def test_the_first_block_has_updated_before_the_last_has_begun(events: list[Times]) -> None:
    """Step 0 is left out: alpha leaves before the update, so an idle last block may begin it earlier still."""
    for step in range(1, STEPS):
        assert events[0]["updated", step] < events[SLOW]["began", step]
