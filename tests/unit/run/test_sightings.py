"""Where ranks are, as they tell each other."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from bllpipe.training.watchdog import LEFT, Posting, Sighting, Sightings, Staleness


def test_what_was_posted_last_is_seen() -> None:
    store: Any = dist.HashStore()
    sightings = Sightings(store)
    assert sightings.of(2) == Posting()
    places = [Sighting("lane 0", "step 7", "stats 0->4", 3.0), Sighting("lane 1", "step 8", "", 0.5)]
    sightings.post(0, Posting(1, 77, places[:1]))
    sightings.post(0, Posting(5, 77, places))
    assert sightings.of(0) == Posting(5, 77, places)
    sightings.post(1, Posting(LEFT))
    sightings.post(2, Posting(1, 78))
    assert {rank: str(posting) for rank, posting in sightings.everybody()} == {
        0: "lane 0 at step 7, waiting at stats 0->4 for 3 s; lane 1 at step 8, computing for 0 s",
        1: "gone",
        2: "at its start",
    }


def test_staleness_counts_looks_at_the_same() -> None:
    staleness = Staleness()
    assert [staleness.look(number) for number in (1, 1, 1, 2, 2, LEFT)] == [0, 1, 2, 0, 1, 0]
