"""The thread that draws ahead: the same items, in the same order, the same end, and no thread that stays."""

from __future__ import annotations

import gc
import threading

import pytest

from bllpipe.data.loader import DEPTH, Prefetcher
from bllpipe.errors import DataError
from tests.support.waiting import PATIENCE


class Numbers:
    """1 to ``last``, then an error or the end."""

    def __init__(self, last: int, error: Exception | None = None) -> None:
        self.last, self.error = last, error
        self.drawn, self.second = 0, threading.Event()

    def draw(self) -> int:
        if self.drawn == self.last:
            raise self.error or StopIteration
        self.drawn += 1
        if self.drawn == 2:
            self.second.set()
        return self.drawn


def test_all_come_in_order_and_some_before_they_are_asked_for() -> None:
    numbers = Numbers(5)
    ahead = Prefetcher(numbers.draw, num_threads=1)
    assert numbers.second.wait(timeout=PATIENCE), "the second is drawn though the first is not taken"
    assert [ahead.recv() for _ in range(5)] == [1, 2, 3, 4, 5]
    ahead.thread.join(PATIENCE)
    assert not ahead.thread.is_alive(), "the thread ends with the last item"


def test_an_iterator_ends_with_the_last_item() -> None:
    assert list(Prefetcher(Numbers(3).draw)) == [1, 2, 3]


def test_what_cannot_be_drawn_is_raised_where_it_is_asked_for() -> None:
    ahead = Prefetcher(Numbers(1, DataError("train/cat/3.png is no image")).draw)
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(DataError, match=r"train/cat/3\.png is no image"):
            next(ahead)


def test_no_more_than_its_depth_is_drawn_ahead() -> None:
    numbers = Numbers(100)
    ahead = Prefetcher(numbers.draw)
    assert [next(ahead) for _ in range(3)] == [1, 2, 3]
    ahead.close()
    ahead.thread.join(PATIENCE)
    assert numbers.drawn <= 3 + DEPTH + 1, "three were taken, and one waits for a place"


def test_the_thread_ends_when_the_prefetcher_is_closed() -> None:
    numbers = Numbers(100)
    ahead = Prefetcher(numbers.draw)
    assert numbers.second.wait(timeout=PATIENCE)
    ahead.close()
    ahead.thread.join(PATIENCE)
    assert not ahead.thread.is_alive()


def test_the_thread_ends_when_its_items_are_no_longer_wanted() -> None:
    numbers = Numbers(100)
    ahead = Prefetcher(numbers.draw)
    thread = ahead.thread
    assert numbers.second.wait(timeout=PATIENCE)
    del ahead
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()
