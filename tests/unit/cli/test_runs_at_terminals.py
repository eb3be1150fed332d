"""Real runs at a terminal: what a person sees of them, and how they and the terminal are left."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.terminals import Terminal, training
from tests.support.waiting import PATIENCE, wait_until

LONG = "steps=100000"
REPOSITORY = Path(__file__).parents[3]
TIMEOUT, STOPPED_SECONDS = 60, 62.0


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


def states(folder: Path) -> set[str]:
    """The states of the processes of a run, T for stopped: its launcher and its ranks, which have its folder in their
    command lines. The server that ranks are forked from has it too, but does nothing that could be stopped."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words, name = (process / "cmdline").read_bytes(), (process / "comm").read_text()
            if f"{folder}\0".encode() in words and (b"rank_processes" not in words or "rank" in name):
                found.add((process / "stat").read_text().rpartition(")")[2].split()[0])
    return found


@pytest.mark.ranks
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("bash") is None, reason="needs /proc and bash")
def test_ctrl_z_at_a_shell_stops_all_and_fg_goes_on(terminal: Terminal, tmp_path: Path) -> None:
    """With a shell that has job control. Ranks once went on, drew over the shell, and had failed after ``fg``: the time
    in which they are stopped is longer than any of them may wait or compute."""
    run, settings = tmp_path / "run", (LONG, f"backend.timeout_seconds={TIMEOUT}")
    shell = terminal.start(["bash", "--norc", "--noprofile", "-i"], PS1="shell> ", PYTHONPATH=str(REPOSITORY))
    try:
        terminal.look_until(lambda shown: "shell>" in "\n".join(shown))
        command = shlex.join(training(run, *settings, engine="ranks"))
        os.write(terminal.ours, f"clear; {command}\n".encode())
        terminal.look_until(is_drawn)
        os.write(terminal.ours, b"\x1a")
        terminal.look_until(lambda shown: "Stopped" in "\n".join(shown) and has_prompt(shown))
        wait_until(lambda: states(run) == {"T"})
        assert in_order(terminal), terminal.shown()
        written = len(terminal.written), (run / "metrics.jsonl").read_bytes()
        threading.Event().wait(STOPPED_SECONDS)
        terminal.look(0.5)
        assert (len(terminal.written), (run / "metrics.jsonl").read_bytes()) == written
        os.write(terminal.ours, b"fg\n")
        terminal.look_until(is_drawn)
        assert "\n".join(terminal.shown()).count("waits for") == 1
        # dozens of lines, while the terminal is read: a view that it does not take is not erased
        wait_until(lambda: terminal.look() and len((run / "metrics.jsonl").read_bytes()) > len(written[1]) + 20_000)
        assert status(run) == "running", (run / "status.json").read_text()
        os.write(terminal.ours, b"\x1a")
        terminal.look_until(lambda shown: "waits for" not in "\n".join(shown))
        wait_until(lambda: states(run) == {"T"})
        size_before = len((run / "metrics.jsonl").read_bytes())
        os.write(terminal.ours, b"bg\n")
        wait_until(lambda: terminal.look() and len((run / "metrics.jsonl").read_bytes()) > size_before + 20_000)
        terminal.look(0.5)
        assert in_order(terminal), terminal.shown()  # a run in the background leaves the terminal to the shell
        os.write(terminal.ours, b"fg\n")
        terminal.look_until(is_drawn)
        os.write(terminal.ours, b"\x03")
        terminal.look_until(lambda shown: "run directory" in "\n".join(shown))
        os.write(terminal.ours, b"echo code $?\n")
        terminal.look_until(lambda shown: "code 130" in shown)
    finally:
        for group in {shell.pid, *groups(run)}:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
    assert status(run) == "preempted"
    assert in_order(terminal), (terminal.screen.margins, terminal.shown())


def has_prompt(shown: list[str]) -> bool:
    """The shell has written its prompt, after all else that is on the screen."""
    return "\n".join(shown).rstrip().endswith("shell>")


def groups(folder: Path) -> set[int]:
    """The process groups of the processes that ``states`` looks at."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{folder}\0".encode() in (process / "cmdline").read_bytes():
                found.add(os.getpgid(int(process.name)))
    return found


@pytest.mark.ranks
def test_ctrl_c_ends_the_view_and_shows_the_summary(terminal: Terminal, tmp_path: Path) -> None:
    run = terminal.fork(training(tmp_path / "run", LONG))
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
    assert in_order(terminal), (terminal.screen.margins, terminal.shown())
    text = "\n".join(terminal.shown())
    assert "SIGINT at rank 0: stopping with a checkpoint" in text
    assert f"run directory {tmp_path}"[:60] in text


@pytest.mark.ranks
def test_a_terminal_that_is_closed_stops_the_run_in_order(terminal: Terminal, tmp_path: Path) -> None:
    run = terminal.fork(training(tmp_path / "run", LONG))
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
    run = terminal.fork(training(tmp_path / "run", "steps=40"))
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
    run = terminal.fork(torchrun, BLLPIPE_FAULT=fault, BLLPIPE_ALLOW_FAULTS="1")
    try:
        terminal.look_until(is_drawn)
        terminal.look_to_the_end()
        assert run.wait(PATIENCE) == 1
    finally:
        run.terminate()
    assert in_order(terminal), (terminal.screen.margins, terminal.shown())
