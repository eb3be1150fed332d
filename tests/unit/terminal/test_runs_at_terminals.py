"""Real runs at a terminal: what a person sees of them, and how they and the terminal are left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.terminal.terminals import Terminal, training

LONG = "steps=100000"


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def status(folder: Path) -> str:
    return str(json.loads((folder / "status.json").read_text())["status"])


def is_drawn(shown: list[str]) -> bool:
    """The view of both blocks, at the very bottom."""
    return "waits for" in "\n".join(shown) and shown[-1].split()[:2] == ["2", "feedback"]


def in_order(terminal: Terminal) -> bool:
    """All rows scroll, the cursor is there, and nothing is left of the view."""
    screen = terminal.screen
    return screen.margins is None and not screen.cursor.hidden and "waits for" not in "\n".join(terminal.shown())


@pytest.mark.ranks
@pytest.mark.timeout(90)
def test_ctrl_c_ends_the_view_and_shows_the_summary(terminal: Terminal, tmp_path: Path) -> None:
    run = terminal.start(training(tmp_path / "run", LONG))
    try:
        terminal.look_until(is_drawn)
        terminal.resize(100, 30)
        terminal.look_until(lambda shown: len(shown) == 30 and is_drawn(shown))
        assert "\n".join(terminal.shown()).count("waits for") == 1
        os.write(terminal.ours, b"\x03")
        terminal.look_to_the_end()
        assert run.wait(20) == 130
    finally:
        run.kill()
    assert status(tmp_path / "run") == "preempted"
    assert in_order(terminal)
    text = "\n".join(terminal.shown())
    assert "SIGINT at rank 0: stopping with a checkpoint" in text
    assert f"run directory {tmp_path}"[:60] in text


@pytest.mark.ranks
@pytest.mark.timeout(90)
def test_a_terminal_that_is_closed_stops_the_run_in_order(terminal: Terminal, tmp_path: Path) -> None:
    run = terminal.start(training(tmp_path / "run", LONG))
    try:
        terminal.look_until(is_drawn)
        terminal.close()
        assert run.wait(30) == 129
    finally:
        run.kill()
        terminal.ours = os.open(os.devnull, os.O_RDONLY)
    assert status(tmp_path / "run") == "preempted"


@pytest.mark.ranks
@pytest.mark.timeout(90)
def test_a_terminal_that_nobody_reads_does_not_stop_training(terminal: Terminal, tmp_path: Path) -> None:
    terminal.fill()
    run = terminal.start(training(tmp_path / "run", "steps=40"))
    try:
        seconds = 0
        while not (tmp_path / "run" / "status.json").exists() or status(tmp_path / "run") != "completed":
            with pytest.raises(subprocess.TimeoutExpired):
                run.wait(0.5)
            seconds += 1
            assert seconds < 80
        terminal.look_to_the_end()
        assert run.wait(20) == 0
    finally:
        run.kill()
    assert "test accuracy" in "\n".join(terminal.shown())


@pytest.mark.ranks
@pytest.mark.timeout(90)
def test_a_rank_that_is_killed_leaves_a_terminal_in_order(terminal: Terminal, tmp_path: Path) -> None:
    """Under torchrun, which knows of no view: the ranks that are left give all rows back."""
    words = training(tmp_path / "run", LONG, engine="ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=3", *words[1:]]
    fault = "rank=0,step=300,point=updated,action=kill"
    run = terminal.start(torchrun, BLLPIPE_FAULT=fault, BLLPIPE_ALLOW_FAULTS="1", OMP_NUM_THREADS="1")
    try:
        terminal.look_until(is_drawn)
        terminal.look_to_the_end()
        assert run.wait(20) == 1
    finally:
        run.terminate()
    assert in_order(terminal)
