"""The progress line, on a terminal and in a log."""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import pytest
import torch.distributed as dist

from bllpipe.tools.monitoring.progress import Progress
from tests.support.waiting import PATIENCE

FIGURES = [
    {"step": 60, "loss": 0.5, "test_accuracy": 0.9, "images_per_second": 10.0},
    {"step": 50, "loss": 0.25, "test_accuracy": 0.95, "images_per_second": 1234.4},
]


class Output(io.StringIO):
    """Text, and a word when something was written."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal, self.written = terminal, threading.Event()

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        count = super().write(text)
        self.written.set()
        return count


def progress(out: Output, store: Any = None, first: int = 0) -> Progress:
    return Progress(store or dist.HashStore(), ["block 0", "block 1"], first, 100, out, plain_seconds=0.01)


def test_the_line_says_step_rate_losses_accuracies_and_time_left() -> None:
    line = progress(Output(terminal=False)).line(FIGURES, seconds=40.0)
    assert line == "step 50/100  1234 images/s  loss 0.500 0.250  test % 90.0 95.0  0:40 left"


@pytest.mark.parametrize(
    ("first", "seconds", "left"), [(0, 90.0, "1:30"), (25, 90.0, "3:00"), (0, 7384.0, "2:03:04"), (49, 10.0, "8:20")]
)
def test_time_left_counts_the_steps_of_this_start_alone(first: int, seconds: float, left: str) -> None:
    assert progress(Output(False), first=first).line([{"step": 50}], seconds) == f"step 50/100  {left} left"


def test_what_is_not_known_yet_is_left_out() -> None:
    assert progress(Output(False), first=50).line([{"step": 50}, {"step": 50}], 1.0) == "step 50/100"


def test_a_log_gets_plain_lines_once_all_blocks_have_figures() -> None:
    out, store = Output(terminal=False), dist.HashStore()
    store.set("progress/block 0", json.dumps(FIGURES[0]))
    with progress(out, store):
        assert not out.written.wait(0.1)
        store.set("progress/block 1", json.dumps(FIGURES[1]))
        assert out.written.wait(PATIENCE)
    assert out.getvalue().startswith("step 50/100  1234 images/s") and "\r" not in out.getvalue()


def test_a_terminal_gets_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    out, store = Output(terminal=True), dist.HashStore()
    for block, figures in enumerate(FIGURES):
        store.set(f"progress/block {block}", json.dumps(figures))
    with progress(out, store):
        assert out.written.wait(PATIENCE)
    assert out.getvalue().startswith("\r\x1b[2Kstep 50/100") and out.getvalue().endswith("\n")
    assert out.getvalue().count("\n") == 1
