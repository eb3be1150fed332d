"""Standard streams that are closed, None, no terminal, ASCII only, blocked or gone: nothing printed fails a run."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import bllpipe
from bllpipe.errors import BllpipeError
from bllpipe.tools.monitoring.live_table import can_draw, release
from bllpipe.utils import console
from bllpipe.utils.console import Bar, encoded, is_terminal, print_line, show, warn

REPOSITORY = Path(__file__).parents[3]


class OnlyWrites:
    """What logging packages put in the place of sys.stdout."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)


class Raises:
    def write(self, text: str) -> int:
        raise RuntimeError("the logger is gone")

    def isatty(self) -> bool:
        raise RuntimeError("the logger is gone")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = [OnlyWrites, Raises, closed, lambda: None]


@pytest.mark.parametrize("stream", STREAMS)
def test_a_script_may_put_anything_in_their_place(stream: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream())  # type: ignore[operator]
    print_line("well")
    warn("not so well")
    release(sys.stdout)
    assert not can_draw(sys.stdout)
    with Bar("plan", 2) as bar:
        bar.advance()


@pytest.mark.parametrize("stream", STREAMS)
def test_a_run_ends_as_it_would(stream: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(64) % 3
    points = torch.randn(64, 6)
    data = (points, labels), (points, labels)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream())  # type: ignore[operator]
    bllpipe.train(network, data, blocks=[2], epochs=1, settings={"data.batch_size": 16}, run_dir=tmp_path / "run")
    assert '"completed"' in (tmp_path / "run" / "status.json").read_text()


def test_what_an_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="ascii") as out:
        print_line("caf\xe9 \u65e5 \udcff", out)
    assert (tmp_path / "log").read_text() == "caf\\xe9 \\u65e5 \\udcff\n"
    assert encoded("\udcff", io.TextIOWrapper(io.BytesIO(), "utf-8")) == b"\\udcff"
    assert encoded("\udcff", io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape")) == b"\xff"


def test_a_pipe_that_is_not_read_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "BLOCKED_SECONDS", 0.01)
    read, write = os.pipe()
    with os.fdopen(read, "rb"), os.fdopen(write, "w") as out:
        for _ in range(3):
            console.put("x" * 100_000, out)  # 65,536 bytes fit
        assert not is_terminal(out)


def test_a_result_that_is_lost_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(BllpipeError, match="cannot write to the standard output: No space left .*; make room"):
            show("a table")


@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(closing: str, tmp_path: Path) -> None:
    """What C++ writes to the standard error would go into it."""
    code = (
        "import os, sys\n"
        "from bllpipe.utils.console import repair_standard_streams, print_line, warn\n"
        "repair_standard_streams()\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w')\n"
        "os.write(2, b'from C++'); print_line('well'); warn('not so well')\n"
        "file.write(str(file.fileno()))\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = f'"{sys.executable}" -c "$CODE" {closing}'
    done = subprocess.run(["sh", "-c", command], env={**variables, "CODE": code}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int((tmp_path / "file").read_text()) > 2


@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-", "> /dev/full 2> /dev/full"])
def test_an_exit_code_is_that_of_the_run(closing: str) -> None:
    command = f"{sys.executable} -m bllpipe.launch --set seeed=1 {closing}"
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run(["sh", "-c", command], env=variables, check=False).returncode == 2


@pytest.mark.parametrize("rank", ["", "00", "x", "-1", "7"])
def test_an_odd_rank_is_not_silent(rank: str) -> None:
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RANK": rank, "WORLD_SIZE": "", "LC_ALL": "C"}
    command = [sys.executable, "-m", "bllpipe.launch", "--set", "engine=sequential"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("use torchrun, or unset RANK and WORLD_SIZE")) == (2, 1)
