"""Ranks that do not suit each other find out before any tensor travels, and end together with one message."""

from __future__ import annotations

from pathlib import Path

import pytest

import bllpipe
from bllpipe.distributed.message_format import VERSION
from tests.support import jobs

pytestmark = pytest.mark.ranks
TWO = (*jobs.SMALL, "blocks=2", "steps=5")


def odd_rank(run_dir: Path, num_ranks: int, settings: tuple[str, ...], *odd: str) -> str:
    """What a job says that ends because its rank 1 is odd."""
    done = jobs.ranks(num_ranks, [*jobs.words(run_dir, *TWO, *settings), "--odd", *odd], module="tests.support.odd_job")
    assert done.returncode != 0 and "SIGABRT" not in done.stderr
    assert done.stderr.count("bllpipe: ") == 1 and "fault in bllpipe" not in done.stderr
    status = jobs.read_json(run_dir / "status.json")
    assert (status["status"], status["rank"]) == ("failed", 1)
    return done.stderr


def test_another_configuration(tmp_path: Path) -> None:
    """Of another batch size messages would be longer than their receives, and would kill the receivers."""
    text = odd_rank(tmp_path / "run", 3, (), "--set", "data.batch_size=64")
    words = (
        "bllpipe: rank 1 (block 1): rank 0 has another configuration than this rank:\n  data.batch_size: 32 in rank 0, "
    )
    assert f"{words}64 here\nstart all ranks with the same config file and the same arguments\n" in text


def test_another_version(tmp_path: Path) -> None:
    text = odd_rank(tmp_path / "run", 2, ("engine=gpipe", "method=bp"), "old")
    words = f"rank 0 has version {VERSION} of the messages (bllpipe {bllpipe.__version__}), this rank version "
    assert (
        f"bllpipe: rank 1 (stage 1): {words}{VERSION - 1} of the messages" in text
        and "install the same bllpipe on all machines\n" in text
    )
