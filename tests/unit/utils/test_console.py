"""A log on a full disk stops nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed import HashStore

from bllpipe.tools.monitoring.progress import Progress
from bllpipe.utils.console import percent, print_line, put, warn


def test_words_go_where_they_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    print_line("well")
    warn("not so well")
    assert capsys.readouterr() == ("well\n", "bllpipe: not so well\n")


def test_an_output_that_takes_nothing_stops_nothing() -> None:
    with Path("/dev/full").open("w") as full:
        print_line("x" * 100_000, full)
        with Progress(HashStore(), ["block 0"], 0, 1, full, 1.0):  # type: ignore[arg-type]  # satisfies the protocol
            put("a line", full)


def test_a_fraction_is_a_percentage_and_an_unknown_one_a_dash() -> None:
    assert [percent(fraction) for fraction in (0.985, 0.0, None)] == ["98.50 %", "0.00 %", "-"]
