"""A run that fails: one rank speaks, and the status file says who and why."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bllpipe.distributed.torchrun import RankEnvironment
from bllpipe.engines.failure import cause_of, enter, exit_code, explain, report_failure
from bllpipe.errors import (
    BllpipeError,
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteError,
    OutputError,
    WireError,
)
from bllpipe.messages import Round
from bllpipe.training.worker import RoundError
from tests.support.forks import ForkedPython
from tests.support.waiting import PATIENCE


@pytest.fixture
def store(tmp_path: Path) -> Any:
    found = dist.HashStore()
    found.set("directory", str(tmp_path))
    return found


def test_only_the_first_rank_speaks(store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_failure(DataError("the images are gone"), store, store, rank=2, role="block 2")
    report_failure(WireError("block 2 is gone"), store, store, rank=1, role="block 1")
    assert capsys.readouterr().err == "bllpipe: rank 2 (block 2): the images are gone\n"
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status["rank"], status["role"]) == ("failed", 2, "block 2")
    assert status["reason"] == "the images are gone"


def test_a_rank_that_says_nothing_at_the_start_is_told_in_words(store: Any, tmp_path: Path) -> None:
    """It was a traceback of torch's store once, and no reason to try again."""
    silent = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=1), wait_for_workers=False)
    with pytest.raises(dist.DistStoreError) as found:
        silent.get("first")
    assert exit_code(found.value) == WireError.exit_code
    report_failure(found.value, store, store, rank=1, role="block 1")
    reason = json.loads((tmp_path / "status.json").read_text())["reason"]
    assert reason.startswith("another rank has not posted within backend.timeout_seconds what this one waits for (")
    assert reason.endswith("if it needs longer, raise backend.timeout_seconds") and "Traceback" not in reason


def test_the_status_names_the_step(store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RoundError(Round("train", 57)) from NonFiniteError("the loss is nan")
    except RoundError as error:
        report_failure(error, store, store, rank=1, role="block 1")
        assert (exit_code(error), str(cause_of(error))) == (5, "the loss is nan")
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["step"], status["reason"]) == (57, "the loss is nan")
    assert capsys.readouterr().err == "bllpipe: rank 1 (block 1): the loss is nan\n"


def test_before_there_is_a_directory_there_is_still_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    store: Any = dist.HashStore()
    report_failure(ConfigError("no such cut"), store, store, rank=0, role="block 0")
    assert capsys.readouterr().err == "bllpipe: rank 0 (block 0): no such cut\n"


def test_a_status_that_cannot_be_written_is_told_and_hides_nothing(
    store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a full disk the report itself once failed with a traceback."""
    (tmp_path / "file").write_text("in the way")
    store.set("directory", str(tmp_path / "file"))
    report_failure(OutputError("cannot write metrics"), store, store, rank=1, role="block 1")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("bllpipe: rank 1 (block 1): cannot write metrics; free space or fix the directory")
    assert (
        second.startswith("bllpipe: rank 1 (block 1): and cannot write the status to ") and "Not a directory" in second
    )


def test_a_process_leaves_even_if_its_output_takes_nothing() -> None:
    """Its last words were flushed before it left, and a full disk kept it from leaving."""
    program = "import sys; from bllpipe.engines.failure import leave; sys.stdout.write('words'); leave(5)"
    process = ForkedPython(["-c", program], os.environ, Path.cwd(), log=Path("/dev/full"))
    assert process.wait(PATIENCE) == 5


class Gone:
    """A store whose server has died."""

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        raise RuntimeError("connection reset")

    def check(self, keys: list[str]) -> bool:
        raise RuntimeError("connection reset")


def test_without_a_store_every_rank_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    gone: Any = Gone()
    report_failure(WireError("nothing came"), gone, gone, rank=3, role="block 3")
    assert "rank 3 (block 3): nothing came" in capsys.readouterr().err


def test_what_is_not_ours_comes_with_a_traceback() -> None:
    try:
        [][1]  # type: ignore[var-annotated]  # it is the error that counts
    except IndexError as error:
        text = explain(error)
    assert text.startswith("this is a fault in bllpipe or in a module of yours\nTraceback")
    assert "IndexError: list index out of range" in text
    assert explain(ConfigError("the message alone")) == "the message alone"


class Speechless(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def in_a_circle() -> Exception:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


@pytest.mark.parametrize("error", [Speechless(), in_a_circle()], ids=["without a text", "in a circle"])
def test_an_error_of_any_form_is_reported(
    error: Exception, store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One left the status ``running``, the other was followed for ever."""
    try:
        raise RoundError(Round("train", 3)) from error
    except RoundError as round_error:
        assert report_failure(round_error, store, store, rank=0, role="block 0") == 1
    assert type(error).__name__ in capsys.readouterr().err
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "failed"


def test_exit_codes_tell_kinds_of_failure_apart() -> None:
    kinds = [BllpipeError, ConfigError, DataError, WireError, CheckpointError, NonFiniteError, OutputError, KeyError]
    assert [exit_code(kind("x")) for kind in (*kinds, MemoryError)] == [1, 2, 2, 3, 4, 5, 6, 1, 8]


def from_another(error: Exception) -> ConfigError:
    """As a network whose trial pass has failed."""
    raised = ConfigError("block 0 cannot take [3, 8, 8]")
    raised.__cause__ = error
    return raised


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (MemoryError(), "MemoryError"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
        (
            RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: 9 bytes\nmore"),
            "can't allocate memory: 9",
        ),
        (RuntimeError("Resource temporarily unavailable"), "Resource temporarily unavailable"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "CUDA out of memory. Tried"),
        (from_another(RuntimeError("std::bad_alloc")), "std::bad_alloc"),
    ],
    ids=["python", "system", "torch", "thread", "gpu", "behind another"],
)
def test_a_rank_without_memory_says_in_one_line_what_to_try(
    store: Any, error: Exception, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_failure(error, store, store, rank=1, role="block 1") == 8
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bllpipe: rank 1 (block 1): expected more memory for this process, got none (")
    assert found in line and "--set model.recompute=units" in line and "--set sharding=fsdp" in line


def test_all_ranks_end_with_the_exit_code_of_the_first_failure() -> None:
    store: Any = dist.HashStore()
    assert report_failure(NonFiniteError("nan"), store, store, rank=1, role="block 1") == 5
    assert report_failure(WireError("block 1 is gone"), store, store, rank=0, role="block 0") == 5


def test_a_rank_without_a_store_says_so_and_ends(capfd: pytest.CaptureFixture[str]) -> None:
    environment = RankEnvironment(1, 2, 1, 2, "localhost", 1, agent_hosts_store=True)
    process = multiprocessing.get_context("spawn").Process(target=enter, args=(environment, 0.2))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 3
    assert "bllpipe: rank 1 does not reach the store of the job at localhost, port 1" in capfd.readouterr().err


def test_no_rank_leaves_before_the_first_has_spoken() -> None:
    """A neighbour that left at once had torchrun end the rank that was about to say what was wrong."""
    store: Any = dist.HashStore()
    store.set("failure", "rank 2 (block 2), exit code 5")
    with ThreadPoolExecutor(1) as pool:
        silent = pool.submit(report_failure, WireError("block 2 is gone"), store, store, rank=1, role="block 1")
        with pytest.raises(TimeoutError):
            silent.result(0.3)
        store.set("failure/reported", "yes")
        assert silent.result(PATIENCE) == 5
