"""The absence of the lock: nobody waits for a backward pass behind it, and a slow block holds up no block before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ranks import jobs

STEPS, SLOW, SECONDS = 30, 3, 0.1
Times = dict[tuple[str, int], float]


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[Times]:
    """When each rank began and finished which step; block 3 loses 0.1 s in every update."""
    run_dir = tmp_path_factory.mktemp("no-lock") / "run"
    settings = (*jobs.SMALL, f"steps={STEPS}", f"backend.ring={STEPS}", "evaluate.every_epochs=0")
    arguments = [str(run_dir), str(SLOW), str(SECONDS), *settings, "checkpoint.every_steps=0"]
    jobs.succeed(jobs.torchrun(5, arguments, module="tests.ranks.slow_job"))
    files = [Path(f"{run_dir}-events-{rank}.json") for rank in range(5)]
    return [{(name, step): when for name, step, when in json.loads(file.read_text())} for file in files]


@pytest.mark.ranks
def test_blocks_before_a_slow_one_finish_early(events: list[Times]) -> None:
    last, slow_began = STEPS - 1, events[SLOW]["began", 0]
    slow_time = events[SLOW]["updated", last] - slow_began
    assert slow_time >= STEPS * SECONDS
    for block in range(SLOW):
        assert events[block]["updated", last] - slow_began < slow_time / 2, f"block {block} waited for block {SLOW}"


@pytest.mark.ranks
def test_lanes_of_the_blocks_before_a_slow_one_finish_early(events: list[Times]) -> None:
    lanes = {name: when for (name, step), when in events[4].items() if step == STEPS - 1}
    assert sorted(lanes) == ["lane layer1.1", "lane layer2.1", "lane layer3.1", "lane layer4.1"]
    slow_end = lanes.pop("lane layer4.1")
    assert all(when < slow_end - STEPS * SECONDS / 2 for when in lanes.values())


@pytest.mark.ranks
def test_the_first_block_has_updated_before_the_last_has_begun(events: list[Times]) -> None:
    """Step 0 is left out: alpha leaves before the update, so an idle last block may begin it earlier still."""
    for step in range(1, STEPS):
        assert events[0]["updated", step] < events[SLOW]["began", step]
