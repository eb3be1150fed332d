"""Ends that do not fit the length of a run are refused with what to type, and their nearest neighbours are accepted."""

from __future__ import annotations

import pytest

from bllpipe.config import load_config
from tests.unit.config.test_validation import refused


@pytest.mark.parametrize(("steps", "stop_at"), [(5, 6), (1, 100)])
def test_stop_behind_the_end(steps: int, stop_at: int) -> None:
    refused(
        [f"steps={steps}", f"stop_at={stop_at}"],
        f"stop_at is {stop_at}, but the run has only {steps} steps; lower stop_at or raise steps",
    )


@pytest.mark.parametrize("name", ["constant", "cosine", "multistep"])
def test_a_warm_up_longer_than_the_run(name: str) -> None:
    refused(
        [f"schedule.name={name}", "schedule.warmup_steps=21", "steps=20"],
        "schedule.warmup_steps is 21, but the run has only 20 steps and would end before its peak rate; use --set "
        "schedule.warmup_steps=2, or train longer",
    )
    load_config(None, [f"schedule.name={name}", "schedule.warmup_steps=20", "steps=20"])
    load_config(None, ["schedule.name=onecycle", "schedule.warmup_steps=21", "steps=20"])
    load_config(None, [f"schedule.name={name}", "schedule.warmup_steps=21", "steps=40", "stop_at=20"])


def test_a_stop_without_the_checkpoint_that_it_ends_with() -> None:
    refused(
        ["stop_at=3", "checkpoint.every_steps=never"],
        "stop_at is 3, which ends with a checkpoint, but checkpoint.every_steps is never; use --set "
        "checkpoint.every_steps=0, or leave stop_at out",
    )
    assert load_config(None, ["stop_at=3", "evaluate.every_epochs=never"]).stop_at == 3
    assert load_config(None, ["checkpoint.every_steps=never"]).checkpoint.every_steps == "never"
