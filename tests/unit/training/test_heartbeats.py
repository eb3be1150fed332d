"""Where ranks are, as they tell each other."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from bllpipe.training.watchdog import LEFT, ActorStatus, Heartbeat, Heartbeats, Staleness


def test_what_was_posted_last_is_seen() -> None:
    store: Any = dist.HashStore()
    sightings = Heartbeats(store)
    assert sightings.of(2) == Heartbeat()
    places = [ActorStatus("lane 0", "step 7", "stats 0->4", 3.0), ActorStatus("lane 1", "step 8", "", 0.5)]
    sightings.post(0, Heartbeat(1, 77, places[:1]))
    sightings.post(0, Heartbeat(5, 77, places))
    assert sightings.of(0) == Heartbeat(5, 77, places)
    sightings.post(1, Heartbeat(LEFT))
    sightings.post(2, Heartbeat(1, 78))
    assert {rank: str(posting) for rank, posting in sightings.all_ranks()} == {
        0: "lane 0 at step 7, waiting at stats 0->4 for 3 s; lane 1 at step 8, computing for 0 s",
        1: "gone",
        2: "at its start",
    }


def test_staleness_counts_looks_at_the_same() -> None:
    staleness = Staleness()
    assert [staleness.look(number) for number in (1, 1, 1, 2, 2, LEFT)] == [0, 1, 2, 0, 1, 0]
