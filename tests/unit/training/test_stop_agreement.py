"""All ranks stop behind the same round, wherever they were when somebody asked for it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from bllpipe.config import load_config
from bllpipe.errors import WireError
from bllpipe.messages import Round
from bllpipe.training.run_schedule import RunSchedule
from bllpipe.training.stopping import StopAgreement
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
