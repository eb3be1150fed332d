"""What the ranks of a job tell each other through its store."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from bllpipe.engines.job import JobStore


def test_what_one_rank_posts_another_one_reads() -> None:
    store: Any = dist.HashStore()
    here, there = JobStore(store), JobStore(store)
    here.set_shape(1, (8, 4, 4))
    assert there.shape_of(1) == (8, 4, 4)


def test_records_are_gathered_by_rank() -> None:
    store: Any = dist.HashStore()
    here, there = JobStore(store), JobStore(store)
    for rank in (2, 0, 1):
        there.post("report", rank, {"rank": rank})
    assert here.gather("report", 3) == [{"rank": rank} for rank in range(3)]
    assert there.check(["report/2"]) and not there.check(["report/3"])
