"""All ranks know the same number of their attempt, whatever the attempts before have left in the store."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch.distributed as dist

from bllpipe.distributed.process_group import agree_attempt
from bllpipe.errors import WireError

SECONDS = 20.0


def start(pool: ThreadPoolExecutor, store: Any, rank: int, world_size: int = 3) -> Future[int]:
    return pool.submit(agree_attempt, rank, world_size, store, SECONDS)


def test_attempts_are_counted_together() -> None:
    store: Any = dist.HashStore()
    with ThreadPoolExecutor(3) as pool:
        for attempt in range(3):
            ranks = [start(pool, store, rank) for rank in (2, 0, 1)]
            assert [rank.result(SECONDS) for rank in ranks] == [attempt] * 3


def test_a_rank_that_never_came_does_not_shift_the_count() -> None:
    """Where torchrun restarted the ranks of one machine without counting, ranks of two attempts once waited for each
    other until the timeout."""
    store: Any = dist.HashStore()
    with pytest.raises(WireError, match=r"^rank 0 waited 0\.1 s for rank 1 to start; see its output, or raise"):
        agree_attempt(0, 2, store, 0.1)
    with ThreadPoolExecutor(2) as pool:
        ranks = [start(pool, store, rank, 2) for rank in (0, 1)]
        assert [rank.result(SECONDS) for rank in ranks] == [1, 1]


def test_a_rank_0_that_is_dead_is_not_believed() -> None:
    store: Any = dist.HashStore()
    with ThreadPoolExecutor(2) as pool:
        assert [start(pool, store, rank, 2) for rank in (0, 1)][1].result(SECONDS) == 0
        early = start(pool, store, 1, 2)  # finds all that attempt 0 needed
        with pytest.raises(TimeoutError):
            early.result(0.3)
        assert start(pool, store, 0, 2).result(SECONDS) == 1
        assert early.result(SECONDS) == 1


def test_without_rank_0_nobody_begins() -> None:
    store: Any = dist.HashStore()
    with pytest.raises(WireError, match=r"^rank 1 waited 0\.1 s for rank 0 to start; see its output"):
        agree_attempt(1, 2, store, 0.1)
