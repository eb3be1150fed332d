"""Which attempt of a job this is. All ranks have to know the same, and torchrun does not tell: where it starts ranks
again because those of another machine have failed, it counts no restart.

    rank 0                               another rank
    counts: this is attempt 2   ------>  finds attempt 2, or 1 of a rank 0 that is dead
    finds a hello to attempt 2  <------  says hello, with a word that nobody used before
    repeats the word            ------>  knows by it that rank 0 is alive

When ranks are started, all those of the attempt before are dead: only what they wrote is still there.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from functools import partial

from bllpipe.errors import WireError
from bllpipe.ports import Store

POLL_SECONDS = 0.02  # a blocking read of the store would hold up signals


def meet(rank: int, world_size: int, job_store: Store, timeout: float) -> int:
    """The number of this attempt, from 0, once rank 0 and this rank know of each other; WireError after ``timeout``
    seconds."""
    if rank == 0:
        return _call(world_size, job_store, timeout)
    return _answer(rank, job_store, timeout)


def _call(world_size: int, store: Store, timeout: float) -> int:
    attempt = store.add("attempts", 1) - 1
    store.set("attempt", str(attempt))
    deadline = time.monotonic() + timeout
    for rank in range(1, world_size):
        hello = f"hello/{attempt}/{rank}"
        _wait_until(partial(store.check, [hello]), deadline, f"rank 0 waited {timeout:g} s for rank {rank}")
        store.set(f"welcome/{attempt}/{rank}", store.get(hello).decode())
    return attempt


def _answer(rank: int, store: Store, timeout: float) -> int:
    word, attempts = uuid.uuid4().hex, set[str]()

    def welcome() -> bool:
        if not store.check(["attempt"]):
            return False
        attempt = store.get("attempt").decode()
        if attempt not in attempts:
            attempts.add(attempt)
            store.set(f"hello/{attempt}/{rank}", word)
        key = f"welcome/{attempt}/{rank}"
        return store.check([key]) and store.get(key).decode() == word

    _wait_until(welcome, time.monotonic() + timeout, f"rank {rank} waited {timeout:g} s for rank 0")
    return max(map(int, attempts))


def _wait_until(condition: Callable[[], bool], deadline: float, complaint: str) -> None:
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise WireError(f"{complaint} to start; see what it has said, or raise backend.timeout_seconds")
        pause.wait(POLL_SECONDS)
