"""All ranks stop behind the same round, wherever they were when somebody asked for it."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist

from bllpipe.config import load_config
from bllpipe.errors import WireError
from bllpipe.messages import Round, Store
from bllpipe.training.run_schedule import RunSchedule
from bllpipe.training.stopping import GracefulStop, StopAgreement
from tests.support.waiting import PATIENCE

# 7 training images in batches of 3 (2 steps an epoch), 4 test images
PLAN = RunSchedule.of(load_config(None, ["data.batch_size=3", "epochs=3", "checkpoint.every_steps=3"]), 7, 4)
ROUNDS = list(PLAN.rounds())


def taken(actor: Iterator[Round], number: int) -> list[Round]:
    return [next(actor) for _ in range(number)]


def test_without_a_stop_all_rounds_follow() -> None:
    stop = StopAgreement()
    assert list(stop.until_stop("block 0", ROUNDS, saved=False)) == ROUNDS
    assert stop.stopped is None


@pytest.mark.parametrize("seed", range(20))
def test_all_stop_where_the_furthest_is(seed: int) -> None:
    draws = random.Random(seed)
    stops = [StopAgreement() for _ in range(4)]
    actors = [stop.until_stop("block", ROUNDS, saved=False) for stop in stops]
    done = [taken(actor, draws.randrange(len(ROUNDS))) for actor in actors]
    begun = [stop.freeze("SIGTERM at rank 1") for stop in stops]
    assert begun == [len(rounds) for rounds in done]
    for stop in stops:
        stop.decide(max(begun))
    runs = [rounds + list(actor) for rounds, actor in zip(done, actors, strict=True)]
    assert all(run == runs[0] for run in runs)
    if max(begun) and ROUNDS[max(begun) - 1].phase != "save":
        assert runs[0][-1].phase == "save" and runs[0][:-1] == ROUNDS[: max(begun)]


@pytest.mark.parametrize(
    ("rounds", "last"),
    [
        (0, Round("save", 0)),
        (1, Round("save", 1)),
        (2, Round("save", 2, tested=False)),
        (3, Round("save", 2, tested=False)),
        (5, Round("save", 2)),
        (11, Round("save", 4, epoch=1)),
    ],
)
def test_the_checkpoint_says_what_is_left_of_its_step(rounds: int, last: Round) -> None:
    stop = StopAgreement()
    actor = stop.until_stop("block", ROUNDS, saved=False)
    taken(actor, rounds)
    stop.decide(stop.freeze("SIGINT at rank 0"))
    assert list(actor) == [last]
    assert stop.stopped == last


def test_a_stop_behind_a_checkpoint_writes_no_second_one() -> None:
    stop = StopAgreement()
    actor = stop.until_stop("block", ROUNDS, saved=False)
    number = next(place for place, entry in enumerate(ROUNDS) if entry.phase == "save") + 1
    taken(actor, number)
    stop.decide(stop.freeze(""))
    assert list(actor) == []
    assert stop.stopped == Round("save", 3, epoch=1)
    resumed = StopAgreement()
    resumed.decide(resumed.freeze(""))
    assert list(resumed.until_stop("block", PLAN.rounds(3), saved=True)) == []


def test_a_run_without_checkpoints_stops_without_one() -> None:
    """All stop at the same place all the same, and a last round takes what is on its way."""
    plan = RunSchedule.of(load_config(None, ["data.batch_size=3", "epochs=3", "checkpoint.every_steps=never"]), 7, 4)
    stop = StopAgreement(saves=False)
    actor = stop.until_stop("block", plan.rounds(), saved=False)
    taken(actor, 2)
    stop.decide(stop.freeze("SIGTERM at rank 0"))
    assert list(actor) == [Round("end", 2, tested=False)]
    assert stop.stopped == Round("end", 2, tested=False)


def test_what_was_left_of_a_step_is_done_first() -> None:
    assert list(PLAN.rounds(2, tested=False)) == [*ROUNDS[2:5], *ROUNDS[5:]]
    assert list(PLAN.rounds(6, tested=False)) == ROUNDS[-4:]


def test_nobody_begins_a_round_before_all_agree() -> None:
    stop = StopAgreement()
    actor = stop.until_stop("block", ROUNDS, saved=False)
    taken(actor, 2)
    stop.freeze("SIGTERM at rank 0")
    rest: list[Round] = []
    thread = threading.Thread(target=lambda: rest.extend(actor))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive() and rest == []
    stop.decide(4)
    thread.join(PATIENCE)
    assert rest == [*ROUNDS[2:4], Round("save", 2, tested=False)]


def test_ranks_that_do_not_answer_are_not_waited_for_for_ever() -> None:
    stop = StopAgreement(agreement_seconds=0.01)
    stop.freeze("SIGTERM at rank 0")
    with pytest.raises(WireError, match=r"a stop was requested \(SIGTERM at rank 0\), but not all ranks posted"):
        list(stop.until_stop("block", ROUNDS, saved=False))


class Counted:
    """A store that counts the keys it is asked for."""

    def __init__(self, store: Store) -> None:
        self._store, self.keys = store, 0

    def set(self, key: str, value: str) -> None:
        self.keys += 1
        self._store.set(key, value)

    def get(self, key: str) -> bytes:
        self.keys += 1
        return self._store.get(key)

    def add(self, key: str, amount: int) -> int:
        self.keys += 1
        return self._store.add(key, amount)

    def check(self, keys: list[str]) -> bool:
        self.keys += len(keys)
        return self._store.check(keys)

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        self.keys += 1
        return self._store.compare_set(key, expected, desired)


def keys_to_stop(num_ranks: int) -> list[int]:
    """The keys that each rank asks for until all have agreed."""
    shared: Any = dist.HashStore()
    stores = [Counted(shared) for _ in range(num_ranks)]
    stops = [
        GracefulStop(store, rank, num_ranks, StopAgreement(), leave=lambda code: None)
        for rank, store in enumerate(stores)
    ]
    stops[num_ranks // 2].on_signal(signal.SIGTERM, look=0)
    for _ in range(3):  # looks of the watchdogs
        for stop in stops:
            stop.agree()
    assert all(stop.agreement.is_decided for stop in stops)
    return [store.keys for store in stores]


def test_what_a_stop_costs_a_rank_does_not_grow_with_their_number() -> None:
    few, many = keys_to_stop(5), keys_to_stop(17)
    assert many[1] == few[1] and max(many[1:]) == max(few[1:]), "but for the rank that asks for all"
    assert many[0] < few[0] * 17 / 5 + 1
