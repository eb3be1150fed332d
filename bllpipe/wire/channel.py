"""A bounded FIFO between two threads that can be closed with the error that ended its other side."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Channel(Generic[Item]):
    """At most ``capacity`` items wait in it. Waiting is by condition variable, so signal handlers still run."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None

    def put(self, item: Item, timeout: float | None = None) -> None:
        """Waits for a free place. Raises TimeoutError, or the error that closed the channel."""
        with self._changed:
            self._wait(lambda: self._error is not None or len(self._items) < self._capacity, timeout)
            if self._error is not None:
                raise self._error
            self._items.append(item)
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> Item:
        """Waits for an item. What was put before the channel was closed still comes."""
        with self._changed:
            self._wait(lambda: self._error is not None or bool(self._items), timeout)
            if not self._items and self._error is not None:
                raise self._error
            self._changed.notify_all()
            return self._items.popleft()

    def close(self, error: BaseException) -> None:
        """Wakes everybody; from now on whoever would wait gets ``error``. The first error stays."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool], timeout: float | None) -> None:
        if not self._changed.wait_for(ready, timeout):
            raise TimeoutError
