"""What a terminal shows while rows of it are kept for a view."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator

import pytest

from bllpipe.tools.monitoring.live_table import Screen, can_draw, release
from tests.support.terminals import Terminal
from tests.support.waiting import PATIENCE

VIEW = ["run  running", "   role     step", "0  block 0    20"]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    yield terminal
    terminal.out.close()
    terminal.close()


def is_confined(terminal: Terminal) -> bool:
    """Whether lines scroll in a part of the screen only."""
    return terminal.screen.margins is not None


def test_lines_of_other_processes_stay_whole_above_the_view(terminal: Terminal) -> None:
    words = "for i in $(seq 40); do echo warning $i of another rank, which is quite long; done"
    with Screen(terminal.out) as screen:
        screen.draw(VIEW)
        other = subprocess.Popen(["sh", "-c", words], stdout=terminal.out)
        while other.poll() is None:
            screen.draw(VIEW)
            terminal.look(0.01)
        screen.draw(VIEW)
        terminal.look()
        *above, empty = terminal.shown()[:21]
        assert terminal.shown()[21:] == VIEW
        assert above == [f"warning {number} of another rank, which is quite long" for number in range(21, 41)]
        assert empty == ""  # where the next one comes
    terminal.look()
    assert terminal.shown() == [*above, "", "", "", ""]
    assert not is_confined(terminal)


@pytest.mark.parametrize(("columns", "rows"), [(80, 40), (80, 12), (40, 24), (120, 30)])
def test_a_resize_leaves_no_old_rows(terminal: Terminal, columns: int, rows: int) -> None:
    with Screen(terminal.out) as screen:
        terminal.out.write("a line\nand another one\n")
        screen.draw(VIEW)
        terminal.look()
        terminal.resize(columns, rows)
        screen.draw(VIEW)
        terminal.look()
        assert terminal.shown()[-3:] == VIEW
        assert set(terminal.shown()[:-3]) <= {"", "a line", "and another one"}
    terminal.look()
    assert not set(VIEW) & set(terminal.shown())


def test_more_rows_and_fewer_rows(terminal: Terminal) -> None:
    with Screen(terminal.out) as screen:
        for number in (1, 3, 2, 0, 3):
            terminal.out.write(f"before {number}\n")
            screen.draw(VIEW[:number])
            terminal.look()
            assert terminal.shown()[24 - number :] == VIEW[:number]
    terminal.look()
    assert terminal.shown()[:6] == ["before 1", "before 3", "before 2", "before 0", "before 3", ""]


def test_too_small_a_terminal_keeps_room_for_lines(terminal: Terminal) -> None:
    terminal.resize(80, 5)
    with Screen(terminal.out) as screen:
        screen.draw(VIEW)
        terminal.look()
        assert terminal.shown() == ["", "", "", *VIEW[:2]]


def test_rows_that_another_process_kept_are_given_back(terminal: Terminal) -> None:
    """The rank that draws was killed; the next line of the shell was confined to the rows above."""
    Screen(terminal.out).draw(VIEW)
    terminal.look()
    assert is_confined(terminal)
    release(terminal.out)
    terminal.look()
    assert not is_confined(terminal)
    assert terminal.shown() == [""] * 24


def test_no_colour_and_no_movement_where_they_are_not_wanted(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Screen(terminal.out).colours
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Screen(terminal.out).colours
    assert can_draw(terminal.out)
    monkeypatch.setenv("TERM", "dumb")
    assert not can_draw(terminal.out)
    release(terminal.out)
    terminal.look()
    assert terminal.written == b""


def test_a_closed_terminal_stops_nothing(terminal: Terminal) -> None:
    with Screen(terminal.out) as screen:
        screen.draw(VIEW)
        os.close(terminal.ours)
        screen.draw(VIEW)
    terminal.ours = os.open(os.devnull, os.O_RDONLY)


def test_a_terminal_that_blocks_holds_the_drawing_alone(terminal: Terminal) -> None:
    """The view waits in the kernel, not in the buffer of the output, whose lock others need."""
    terminal.fill()
    drawing = threading.Thread(target=Screen(terminal.out).draw, args=(VIEW,))
    drawing.start()
    drawing.join(0.3)
    assert drawing.is_alive()
    others = threading.Thread(target=terminal.out.write, args=("not flushed",))
    others.start()
    others.join(PATIENCE)
    assert not others.is_alive()
    while drawing.is_alive():
        terminal.look(0.1)
    drawing.join(PATIENCE)
