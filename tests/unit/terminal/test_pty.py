"""A real run, with ranks of its own, at a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

WORDS = ("steps=60", "blocks=2", "model.width=4", "log.every_steps=5")


def at_a_terminal(folder: Path, *more: str) -> tuple[int, str]:
    """The exit code of a run whose standard output is a terminal of 80 x 24, and all that it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    sets = [word for key in WORDS for word in ("--set", key)]
    command = [sys.executable, "-m", "bllpipe.launch", *sets, "--run-dir", str(folder), *more]
    run = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := _read(ours):
            written += chunk
        return run.wait(timeout=60), written.decode()
    finally:
        run.kill()
        os.close(ours)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # nobody has it open any more
        return b""


@pytest.mark.ranks
@pytest.mark.timeout(90)
def test_the_table_is_shown_and_the_terminal_is_left_in_order(tmp_path: Path) -> None:
    code, written = at_a_terminal(tmp_path / "run", "--set", "engine=ranks", "--set", "steps=400")
    assert code == 0
    assert "waits for" in written
    assert written.rindex("\x1b[r") > written.rindex(";1H")  # all rows scroll again
    after = written[written.rindex("\x1b[r") :]
    assert "\x1b[?25l" not in written or "\x1b[?25h" in after  # and the cursor is there
    assert "state_sha256" in written


def test_quiet_is_one_line(tmp_path: Path) -> None:
    code, written = at_a_terminal(tmp_path / "run", "--quiet", "--set", "engine=sequential")
    assert code == 0
    assert written.startswith("test accuracy ")
    assert len(written.splitlines()) == 1
