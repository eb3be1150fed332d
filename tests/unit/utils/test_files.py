"""Files that the disk refuses: one message with place and room, nothing half-written, a run that may go on without."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bllpipe.errors import OutputError
from bllpipe.utils.files import WritePolicy, append_line, atomic_write, json_object, writing
from tests.support.disks import files_of_at_most

FULL = Path("/dev/full")  # takes nothing: as a disk without room


def test_the_message_says_what_where_why_how_much_room_there_is_and_what_to_do() -> None:
    words = (
        r"^cannot write metrics to /dev/full: No space left on device; [0-9,]+ bytes are free there; "
        r"free space or fix the directory, and resume with --resume auto$"
    )
    with pytest.raises(OutputError, match=words), writing("metrics", FULL):
        append_line(FULL, "x")


def test_the_room_is_that_of_the_directory_that_would_hold_the_file(tmp_path: Path) -> None:
    place = tmp_path / "file" / "deeper" / "metrics.jsonl"
    (tmp_path / "file").write_text("")
    words = r"deeper/metrics.jsonl: Not a directory; [1-9][0-9,]+ bytes are free there"
    with pytest.raises(OutputError, match=words), writing("metrics", place):
        append_line(place, "x")


def test_of_a_line_that_does_not_fit_nothing_stays(tmp_path: Path) -> None:
    """A part of it once spoilt the line that came next."""
    path = tmp_path / "metrics.jsonl"
    append_line(path, "first")
    with files_of_at_most(20), pytest.raises(OSError, match="File too large"):
        append_line(path, "x" * 50)
    append_line(path, "last")
    assert path.read_text() == "first\nlast\n"


def test_a_file_that_does_not_fit_leaves_the_old_one_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    atomic_write(path, "old")
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        atomic_write(path, "x" * 1000)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["status.json"]


def failing() -> None:
    with writing("metrics", FULL):
        append_line(FULL, "x")


def test_a_strict_run_ends() -> None:
    with pytest.raises(OutputError, match="cannot write metrics"):
        WritePolicy("fail", "metrics", "log.if_unwritable", pytest.fail).attempt(failing)


def test_a_lenient_run_is_told_once_and_again_when_it_is_over() -> None:
    told: list[str] = []
    log = WritePolicy("go_on", "metrics", "log.if_unwritable", told.append)
    for write in (failing, failing, failing, lambda: None, lambda: None, failing):
        log.attempt(write)
    first, second, third = told
    assert re.fullmatch(
        r"cannot write metrics .* free there; the run goes on without \(log.if_unwritable: go_on\)", first
    )
    assert second == "metrics can be written again; 3 could not"
    assert third == first


def test_another_error_is_no_matter_of_room() -> None:
    def wrong() -> None:
        raise ValueError("not a disk")

    with pytest.raises(ValueError, match="not a disk"):
        WritePolicy("go_on", "metrics", "log.if_unwritable", pytest.fail).attempt(wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [('{"a": 1}', {"a": 1}), (b'{"a": 1}', {"a": 1}), ("[1]", {}), ('{"a"', {}), ("", {}), ("[" * 100_000, {})],
)
def test_anything_but_a_json_object_is_an_empty_one(text: str | bytes, expected: dict[str, int]) -> None:
    assert json_object(text) == expected
