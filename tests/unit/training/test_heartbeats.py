"""Where ranks are, as they tell each other."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch.distributed as dist

from bllpipe.errors import BllpipeError
from bllpipe.training.stopping import StopAgreement
from bllpipe.training.watchdog import (
    LEFT,
    LOOK_SECONDS,
    STOPPED_SECONDS,
    ActorStatus,
    Heartbeat,
    Heartbeats,
    RunningTime,
    Staleness,
    Watchdog,
)
from bllpipe.training.worker import Worker
from tests.support.waiting import wait_until

STOP_IN_SET = int((STOPPED_SECONDS + 2) / LOOK_SECONDS)


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


def test_a_stop_between_any_two_looks_ends_the_time_that_ran() -> None:
    """Also one after the signals were looked at and before the actors are: it once counted as their computing."""
    running = RunningTime(10.0)
    assert [running.look(now) for now in (10.2, 10.4, 12.0)] == [pytest.approx(seconds) for seconds in (0.2, 0.4, 2.0)]
    assert running.look(29.0) == 0.0  # stopped for 17 s
    assert running.look(29.5) == pytest.approx(0.5)


class StoppedIn(dist.HashStore):  # type: ignore[misc]  # torch gives it no type
    """A store in which one ``set`` takes longer than an actor may compute, as when this process is stopped in it; until
    then the watchdog has looked for longer than that. ``actor`` computes from the stop on."""

    def __init__(self, actor: SimpleNamespace) -> None:
        super().__init__()
        self._actor, self.sets = actor, 0

    def set(self, key: str, value: str) -> None:
        self.sets += 1
        if self.sets == STOP_IN_SET:
            self._actor.entered = time.perf_counter()
            threading.Event().wait(STOPPED_SECONDS + 1)
        super().set(key, value)


def test_a_stop_of_the_watchdog_at_any_place_is_no_time_in_which_an_actor_computes() -> None:
    """It was once taken for that when it began between two things that the watchdog does, and not in its sleep."""
    failed: list[BllpipeError] = []
    actor = SimpleNamespace(name="block 0", entered=0.0, entry=None, stopwatch=SimpleNamespace(ports=[]))
    store: Any = StoppedIn(actor)
    watchdog = Watchdog(
        store,
        0,
        ["block 0"],
        StopAgreement(),
        timeout=STOPPED_SECONDS + 0.5,
        fail=lambda error, rank: failed.append(error),
        leave=lambda code: None,
    )
    watchdog.watch([cast(Worker, SimpleNamespace(actors=[actor]))])
    with watchdog:
        wait_until(lambda: store.sets > STOP_IN_SET)
    assert failed == []
