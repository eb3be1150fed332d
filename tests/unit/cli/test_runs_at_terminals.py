"""Real runs at a terminal: what a person sees of them, and how they and the terminal are left."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.terminals import Terminal, training
from tests.support.waiting import PATIENCE, wait_until

LONG = "steps=100000"


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_a_program_at_a_terminal_hears_it_hang_up(terminal: Terminal) -> None:
    """Also where the tests do not, which nohup has ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        program = terminal.start([sys.executable, "-c", "import time; print('on', flush=True); time.sleep(3600)"])
    finally:
        signal.signal(signal.SIGHUP, before)
    terminal.look_until(lambda shown: shown[0] == "on")
    terminal.close()
    terminal.ours = os.open(os.devnull, os.O_RDONLY)
    assert program.wait(PATIENCE) == -signal.SIGHUP


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
def test_ctrl_c_ends_the_view_and_shows_the_summary(terminal: Terminal, tmp_path: Path) -> None:
    run = terminal.start(training(tmp_path / "run", LONG))
    try:
        terminal.look_until(is_drawn)
        terminal.resize(100, 30)
        terminal.look_until(lambda shown: len(shown) == 30 and is_drawn(shown))
        assert "\n".join(terminal.shown()).count("waits for") == 1
        os.write(terminal.ours, b"\x03")
        terminal.look_to_the_end()
        assert run.wait(PATIENCE) == 130
    finally:
        run.kill()
    assert status(tmp_path / "run") == "preempted"
    assert in_order(terminal)
    text = "\n".join(terminal.shown())
    assert "SIGINT at rank 0: stopping with a checkpoint" in text
    assert f"run directory {tmp_path}"[:60] in text


@pytest.mark.ranks
def test_a_terminal_that_is_closed_stops_the_run_in_order(terminal: Terminal, tmp_path: Path) -> None:
    run = terminal.start(training(tmp_path / "run", LONG))
    try:
        terminal.look_until(is_drawn)
        terminal.close()
        assert run.wait(PATIENCE) == 129
    finally:
        run.kill()
        terminal.ours = os.open(os.devnull, os.O_RDONLY)
    assert status(tmp_path / "run") == "preempted"


@pytest.mark.ranks
def test_a_terminal_that_nobody_reads_does_not_stop_training(terminal: Terminal, tmp_path: Path) -> None:
    terminal.fill()
    run = terminal.start(training(tmp_path / "run", "steps=40"))
    try:
        wait_until(lambda: (tmp_path / "run" / "status.json").exists() and status(tmp_path / "run") == "completed")
        assert run.poll() is None, "its last words are not read yet"
        terminal.look_to_the_end()
        assert run.wait(PATIENCE) == 0
    finally:
        run.kill()
    assert "test accuracy" in "\n".join(terminal.shown())


@pytest.mark.ranks
def test_a_rank_that_is_killed_leaves_a_terminal_in_order(terminal: Terminal, tmp_path: Path) -> None:
    """Under torchrun, which knows of no view: the ranks that are left give all rows back."""
    words = training(tmp_path / "run", LONG, engine="ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=3", *words[1:]]
    fault = "rank=0,step=300,point=updated,action=kill"
    run = terminal.start(torchrun, BLLPIPE_FAULT=fault, BLLPIPE_ALLOW_FAULTS="1", OMP_NUM_THREADS="1")
    try:
        terminal.look_until(is_drawn)
        terminal.look_to_the_end()
        assert run.wait(PATIENCE) == 1
    finally:
        run.terminate()
    assert in_order(terminal)
