"""A log on a full disk stops nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed import HashStore

from bllpipe.tools.monitoring.progress import Progress
from bllpipe.utils.console import put, say, warn


def test_words_go_where_they_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    say("well")
    warn("not so well")
    assert capsys.readouterr() == ("well\n", "bllpipe: not so well\n")


def test_an_output_that_takes_nothing_stops_nothing() -> None:
    with Path("/dev/full").open("w") as full:
        say("x" * 100_000, full)
        with Progress(HashStore(), ["block 0"], 0, 1, full, 1.0):  # type: ignore[arg-type]  # satisfies the protocol
            put("a line", full)
