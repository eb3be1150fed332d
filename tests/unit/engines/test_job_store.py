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
    here.post("restored", 1, ["b"])
    there.post("restored", 0, ["a"])
    assert here.gather("restored", 2) == [["a"], ["b"]]
    assert there.check(["restored/1"]) and not there.check(["restored/2"])
