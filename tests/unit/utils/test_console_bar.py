"""The progress of long jobs: lines in a log, a bar at a real terminal, nothing of it where the results go."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bllpipe.utils import console
from bllpipe.utils.console import Bar

REPOSITORY = Path(__file__).parents[3]
JOB = """
from bllpipe.utils.console import Bar
with Bar("chaos", 2, quiet={quiet}) as bar:
    bar.advance("run [red]0")
    print("run 0: the same bits")
    bar.advance("run 1")
print("a table")
"""


def test_a_line_says_done_of_how_many_time_so_far_and_time_left() -> None:
    shown = Bar("plan", 100, io.StringIO())
    assert shown.line("layer1.0", 0.2) == "plan: 0 of 100, layer1.0; 0:00:00 so far"
    shown.at("layer1.0", 20, 100)
    assert shown.line("layer1.0", 3700.0) == "plan: 20 of 100, layer1.0; 1:01:40 so far, 4:06:40 left"
    shown.at("more than was thought", 101, 100)
    assert shown.line("more", 101.0).endswith("0:01:41 so far, 0:00:00 left")
    shown.at("building layer1.0")
    assert shown.line("building layer1.0", 3.0) == "plan: building layer1.0; 0:00:03 so far"


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    with Bar("soak", 3, out) as shown:
        shown.advance("too early")
        monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
        shown.advance("two")
        shown.advance("three")
    lines = out.getvalue().splitlines()
    assert [line.partition(";")[0] for line in lines] == ["soak: 2 of 3, two", "soak: 3 of 3, three"]
    assert lines[-1].endswith("0:00:00 left")


def test_a_log_on_a_full_disk_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    with open("/dev/full", "w") as full:
        Bar("soak", 3, full).advance("one")


def test_every_thread_counts() -> None:
    shown = Bar("chaos", 4000, io.StringIO())
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4000):
            pool.submit(shown.advance)
    assert shown.done == 4000


@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_gets_a_bar_and_a_pipe_the_results_alone(quiet: bool) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", JOB.format(quiet=quiet)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
        cwd=REPOSITORY,
        timeout=60,
        check=True,
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.stdout == b"run 0: the same bits\na table\n"
    assert "chaos" in shown and "2/2" in shown and "run 1" in shown and shown.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal, Bar("chaos", 2, terminal) as shown:
        shown.advance("run 0")
    assert os.read(ours, 1000).decode().startswith("chaos: 1 of 2, run 0; 0:00:00 so far")
    os.close(ours)
