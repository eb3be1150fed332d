"""The itinerary against one written by hand, and against its own tail."""

from __future__ import annotations

import pytest

from bllpipe.config import load_config
from bllpipe.errors import ConfigError
from bllpipe.messages import Round, messages
from bllpipe.training.run_schedule import RunSchedule

# 7 training images in batches of 3 (2 steps an epoch), 4 test images
SETTINGS = ("data.batch_size=3", "epochs=2")


def plan(*overrides: str) -> RunSchedule:
    return RunSchedule.of(load_config(None, [*SETTINGS, *overrides]), num_train=7, num_test=4)


def test_every_round_of_a_short_run() -> None:
    assert list(plan("checkpoint.every_steps=3").rounds()) == [
        Round("train", 0, epoch=0, batch=0, size=3),
        Round("train", 1, epoch=0, batch=1, size=3),
        Round("evaluate", 2, epoch=0, batch=0, size=3),
        Round("evaluate", 2, epoch=0, batch=1, size=1),
        Round("score", 2, epoch=0),
        Round("train", 2, epoch=1, batch=0, size=3),
        Round("save", 3, epoch=1),
        Round("train", 3, epoch=1, batch=1, size=3),
        Round("evaluate", 4, epoch=1, batch=0, size=3),
        Round("evaluate", 4, epoch=1, batch=1, size=1),
        Round("score", 4, epoch=1),
        Round("save", 4, epoch=1),
    ]


def test_stopping_early_saves_but_does_not_test() -> None:
    early = list(plan("stop_at=1", "checkpoint.every_steps=0").rounds())
    assert early == [Round("train", 0, 0, 0, 3), Round("save", 1, 0)]


def test_steps_may_end_in_the_middle_of_an_epoch() -> None:
    rounds = list(plan("steps=3", "evaluate.every_epochs=0", "checkpoint.every_steps=null").rounds())
    assert [entry.step for entry in rounds if entry.phase == "train"] == [0, 1, 2]
    assert [entry.step for entry in rounds if entry.phase == "score"] == [3], "only at the end"
    assert [entry.step for entry in rounds if entry.phase == "save"] == [2, 3], "after the epoch, and at the end"


def test_never_is_not_at_the_end_either() -> None:
    """The last round is there so that nothing stays on its way; 0 means at the end."""
    rounds = list(plan("evaluate.every_epochs=never", "checkpoint.every_steps=never").rounds())
    assert [entry.phase for entry in rounds] == ["train"] * 4 + ["end"]
    assert rounds[-1] == Round("end", 4, epoch=1)
    assert [entry.phase for entry in plan("checkpoint.every_steps=never").rounds()].count("score") == 2
    assert [entry.phase for entry in plan("evaluate.every_epochs=never").rounds()] == ["train"] * 4 + ["save"]


@pytest.mark.parametrize("start", range(4))
def test_a_later_start_is_the_tail_of_the_whole(start: int) -> None:
    """What lies between the checkpoint of ``start`` and the next training step was done before it was written."""
    whole, rest = list(plan().rounds()), list(plan().rounds(start))
    first = next(i for i, entry in enumerate(whole) if entry.phase == "train" and entry.step == start)
    assert rest == whole[first:]


def test_messages_travel_in_training_and_tests_only() -> None:
    assert {entry.phase for entry in messages(plan().rounds())} == {"train", "evaluate"}


def test_a_batch_that_cannot_be_filled() -> None:
    with pytest.raises(
        ConfigError,
        match=r"data.batch_size is 8, but digits has only 7 training images; use --set data.batch_size=7 or less",
    ):
        plan("data.batch_size=8")


def test_a_warm_up_longer_than_all_epochs() -> None:
    """Two epochs of two steps; how many there are only the data tell."""
    with pytest.raises(
        ConfigError, match=r"warmup_steps is 5, but the run has only 4 steps .*; use --set schedule.warm"
    ):
        plan("schedule.name=cosine", "schedule.warmup_steps=5")
    assert plan("schedule.name=cosine", "schedule.warmup_steps=4").total_steps == 4


@pytest.mark.parametrize(
    ("entry", "text"),
    [(Round("train", 7), "step 7"), (Round("evaluate", 7, batch=2), "evaluate 2 after step 7")],
)
def test_a_round_in_words(entry: Round, text: str) -> None:
    assert str(entry) == text
