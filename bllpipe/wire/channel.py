"""A bounded FIFO between two threads that can be closed with the error that ended its other side."""

from __future__ import annotations

from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class _Closed:
    """Lies behind everything that was put before."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Channel(Generic[Item]):
    """At most ``capacity`` items wait in it. Waiting is on a lock, so signal handlers still run.

    It is two queues, of items and of free places: those of the standard library are written in C, and every message
    passes several channels.
    """

    def __init__(self, capacity: int) -> None:
        self._items: SimpleQueue[Any] = SimpleQueue()
        self._places: SimpleQueue[Any] = SimpleQueue()
        for _ in range(capacity):
            self._places.put(None)
        self._error: BaseException | None = None

    def put(self, item: Item, timeout: float | None = None) -> None:
        """Waits for a free place. Raises TimeoutError, or the error that closed the channel."""
        if self._error is not None:
            raise self._error
        _next(self._places, timeout)
        self._items.put(item)

    def get(self, timeout: float | None = None) -> Item:
        """Waits for an item. What was put before the channel was closed still comes."""
        item: Item = _next(self._items, timeout)
        self._places.put(None)
        return item

    def __len__(self) -> int:
        """How many items wait in it."""
        return self._items.qsize()

    def close(self, error: BaseException) -> None:
        """Wakes everybody; from now on whoever would wait gets ``error``. The first error stays."""
        if self._error is None:
            self._error = error
            self._items.put(_Closed(error))
            self._places.put(_Closed(error))


def _next(queue: SimpleQueue[Any], timeout: float | None) -> Any:
    try:
        found = queue.get(timeout=timeout)
    except Empty:
        raise TimeoutError from None
    if isinstance(found, _Closed):
        queue.put(found)  # for whoever comes next
        raise found.error
    return found
