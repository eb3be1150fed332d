"""Restarts end when they come no further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from bllpipe.engines.job import check_progress, last_failure
from bllpipe.errors import NoProgressError
from bllpipe.training.run_directory import RunDirectory

KILLED = "its ranks were killed before they could say why"


def begin(store: Any, starts: list[int], tries: int = 3) -> None:
    for attempt, start in enumerate(starts):
        check_progress(store, attempt, start, tries, RunDirectory(Path("runs/x")))


@pytest.mark.parametrize(
    ("starts", "tries"),
    [([0, 0, 0], 3), ([0, 0, 20, 20, 20, 40, 40, 40], 3), ([0] * 9, 9), ([5, 6, 7], 1), ([9, 6, 9, 6], 2)],
)
def test_progress_now_and_then_is_enough(starts: list[int], tries: int) -> None:
    begin(dist.HashStore(), starts, tries)


@pytest.mark.parametrize(
    ("starts", "tries", "step"), [([0, 0, 0, 0], 3, 0), ([0, 200, 200, 200, 200], 3, 200), ([4, 4], 1, 4)]
)
def test_the_same_step_again_and_again_is_not(starts: list[int], tries: int, step: int) -> None:
    store: Any = dist.HashStore()
    begin(store, starts[:-1], tries)
    message = (
        rf"^the last {tries} attempts all began at step {step} and failed .* was: {KILLED}\n"
        r"fix its cause and resume with --run-dir runs/x --resume auto; or save more often"
    )
    with pytest.raises(NoProgressError, match=message):
        check_progress(store, len(starts) - 1, step, tries, RunDirectory(Path("runs/x")))


def test_an_attempt_that_failed_before_it_began_came_no_further() -> None:
    store: Any = dist.HashStore()
    directory = RunDirectory(Path("runs/x"))
    check_progress(store, 0, 20, 3, directory)
    with pytest.raises(NoProgressError, match="at step 20"):
        check_progress(store, 3, 20, 3, directory)


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("block 1 is gone", "block 1 is gone"),
        ("a fault\nTraceback (most recent call last):\nKeyError: 'x'\n", "KeyError: 'x'"),
        ("", "no reason"),
    ],
)
def test_the_last_failure(tmp_path: Path, reason: str, shown: str) -> None:
    directory = RunDirectory(tmp_path)
    assert last_failure(directory) == KILLED
    directory.write_status("running", step=3)
    assert last_failure(directory) == KILLED
    directory.write_status("failed", rank=2, role="block 2", reason=reason)
    assert last_failure(directory) == f"rank 2 (block 2): {shown}"


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_status_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text, encoding="latin-1")
    assert RunDirectory(tmp_path).read_status() == {}
