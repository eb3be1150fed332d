"""Five real ranks, traced: a file each, on one clock, and the same bits as ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from bllpipe.tools.analysis.timeline import Timeline, messages, read_timeline
from tests.support import jobs

SETTINGS = (*jobs.SMALL, "steps=40")
STEPS = range(20, 32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "traced"
    window = (f"trace.first_step={STEPS.start}", f"trace.num_steps={len(STEPS)}")
    jobs.succeed(jobs.ranks(5, jobs.words(path, *SETTINGS, *window), timeout=240))
    return path


@pytest.fixture(scope="module")
def timeline(run: Path) -> Timeline:
    heard: list[str] = []
    found = read_timeline(run, heard.append)
    assert heard == []
    return found


@pytest.mark.ranks
def test_every_rank_leaves_a_file(run: Path, timeline: Timeline) -> None:
    assert sorted(file.name for file in (run / "spans").iterdir()) == [f"rank-{rank}.jsonl" for rank in range(5)]
    assert [rank.role for rank in timeline.ranks] == ["block 0", "block 1", "block 2", "block 3", "feedback"]
    assert all({span.step for span in rank.spans} == set(STEPS) for rank in timeline.ranks)
    per_step = [len([span for span in rank.spans if span.phase == "train"]) / len(STEPS) for rank in timeline.ranks]
    assert per_step == [11, 11, 11, 10, 4 * 6]


@pytest.mark.ranks
def test_no_activation_is_received_before_its_send_began(timeline: Timeline) -> None:
    pairs = messages(timeline)
    train = [(send, receive) for send, receive in pairs if send.phase == "train"]
    assert len(train) == 3 * len(STEPS)
    assert {send.edge for send, _ in train} == {"alpha 0->1", "alpha 1->2", "alpha 2->3"}
    assert all(receive.end > send.start for send, receive in pairs)
    assert [rank.uncertainty for rank in timeline.ranks] == [0] * 5, "on one machine all clocks are one"


@pytest.mark.ranks
def test_shares_are_shares(timeline: Timeline) -> None:
    assert all(0 < rank.busy < 1 for rank in timeline.ranks)
    assert 0 < timeline.bubbles < 1
    assert timeline.steps_per_second > 0


@pytest.mark.ranks
def test_traced_ranks_compute_the_same_bits(run: Path, tmp_path: Path) -> None:
    untraced = jobs.in_this_process(tmp_path / "sequential", "engine=sequential", *SETTINGS)
    assert jobs.summary(run)["state_sha256"] == untraced["state_sha256"]
