"""A disk that refuses a checkpoint: the last one stays whole, nobody waits for ever, and the run ends or goes on."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bllpipe.checkpoint import CheckpointWriter, open_checkpoint, remove_unfinished
from bllpipe.errors import OutputError
from tests.support.checkpoint_samples import assert_holds, sample, tree, write_checkpoint
from tests.support.disks import files_of_at_most, small_disk

LARGE = {"x": torch.zeros(400_000)}  # 1.6 MB


@pytest.mark.parametrize(("size", "facts"), [(100_000, {}), (1_000_000, {"long": "x" * 2_000_000})])
def test_a_full_disk_is_explained_and_the_last_checkpoint_stays(
    tmp_path: Path, size: int, facts: dict[str, str]
) -> None:
    write_checkpoint(tmp_path, 1)
    writer = CheckpointWriter(tmp_path, dist.HashStore(), 1, "second", keep=1)
    refused = "rank 0 cannot write the checkpoint of step 2 .*File too large.*free space or fix the directory"
    with files_of_at_most(size), pytest.raises(OutputError, match=refused):
        writer.write(2, 0, {"x": torch.zeros(100_000)}, facts)
    left = list(tree(tmp_path / "step-00000002.partial-second"))
    assert left == (["rank-0.safetensors"] if facts else []), "what does not fit must not fill the disk"
    assert_holds(open_checkpoint(tmp_path).path, 1)


def test_a_file_in_the_way_is_named_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1)
    (tmp_path / "step-00000002.partial-first").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write the checkpoint of step 2 .*step-00000002.partial-first"):
        write_checkpoint(tmp_path, 2)
    assert_holds(open_checkpoint(tmp_path).path, 1)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("not a directory")
    with pytest.raises(OutputError, match="rank 0 cannot write .*checkpoints.*Not a directory"):
        write_checkpoint(tmp_path / "checkpoints", 1)


def test_whoever_waits_for_a_checkpoint_is_told_that_it_will_not_come(tmp_path: Path) -> None:
    store: Any = dist.HashStore()
    writers = [CheckpointWriter(tmp_path, store, 2, "first", keep=1) for _ in range(2)]
    writers[0].write(1, 0, sample(0, 1), {})
    with files_of_at_most(100_000), pytest.raises(OutputError, match="rank 1 cannot write the checkpoint of step 1"):
        writers[1].write(1, 1, LARGE, {})
    words = "the last checkpoint, of step 1, is not written: rank 1 cannot write .*File too large.*--resume auto$"
    with pytest.raises(OutputError, match=words):
        writers[0].wait_committed(1)


def lenient(directory: Path, num_ranks: int, attempt: str = "first", keep: int = 2) -> list[CheckpointWriter]:
    store: Any = dist.HashStore()
    return [CheckpointWriter(directory, store, num_ranks, attempt, keep, "go_on") for _ in range(num_ranks)]


def write_all(writers: list[CheckpointWriter], step: int) -> None:
    for rank, writer in enumerate(writers):
        writer.write(step, rank, sample(rank, step), {})


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_run_that_may_go_on_leaves_out_what_one_rank_cannot_write(
    tmp_path: Path, order: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    writers = lenient(tmp_path, 3)
    write_all(writers, 1)
    for rank in order:
        with files_of_at_most(100_000):
            writers[rank].write(2, rank, LARGE if rank == 1 else sample(rank, 2), {})
    assert list(tree(tmp_path)) == ["step-00000001"], "nothing is left of it"
    for writer in writers:
        with pytest.raises(OutputError, match="the last checkpoint, of step 2, is not written: rank 1 cannot"):
            writer.wait_committed(2)
    write_all(writers, 3)
    writers[0].wait_committed(3)
    assert list(tree(tmp_path)) == ["step-00000001", "step-00000003"]
    assert_holds(tmp_path / "step-00000003", 3, num_ranks=3)
    first, second = capsys.readouterr().err.splitlines()
    words = r"bllpipe: rank 1 cannot write the checkpoint of step 2 .* bytes are free there; the run goes on without "
    assert re.fullmatch(words + r"\(checkpoint.if_unwritable: go_on\), and tries the next one", first)
    assert second == "bllpipe: checkpoints can be written again: that of step 3 is complete"


def test_a_run_that_may_go_on_complains_once_and_not_at_every_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writers = lenient(tmp_path, 2)
    with files_of_at_most(10):
        for step in range(1, 6):
            write_all(writers if step % 2 else writers[::-1], step)
    assert list(tree(tmp_path)) == []
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_checkpoint_that_cannot_be_completed_is_left_out_too(tmp_path: Path) -> None:
    writers = lenient(tmp_path, 2)
    write_all(writers, 1)
    writers[0].write(2, 0, sample(0, 2), {})
    (tmp_path / "step-00000002.partial-first" / "manifest.json").mkdir()  # in the way
    writers[1].write(2, 1, sample(1, 2), {})
    with pytest.raises(OutputError, match="of step 2, is not written: rank 1 cannot write"):
        writers[0].wait_committed(2)
    assert list(tree(tmp_path)) == ["step-00000001"]
    with pytest.raises(OutputError, match="rank 1 cannot write .*the checkpoints before it are untouched; free space"):
        strict = [CheckpointWriter(tmp_path, writers[0]._store, 2, "first", 1) for _ in range(2)]
        strict[0].write(3, 0, sample(0, 3), {})
        (tmp_path / "step-00000003.partial-first" / "manifest.json").mkdir()
        strict[1].write(3, 1, sample(1, 3), {})


def test_a_full_disk_is_no_fuller_afterwards_and_takes_the_next_one_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kibibytes=1024) as disk:
        (writer,) = lenient(disk.path / "checkpoints", 1, keep=1)
        writer.write(1, 0, sample(0, 1), {})
        writer.write(2, 0, LARGE, {})
        assert list(tree(disk.path / "checkpoints")) == ["step-00000001"]
        assert_holds(disk.path / "checkpoints" / "step-00000001", 1, num_ranks=1)
        with pytest.raises(OutputError, match=r"No space left on device.* [0-9,]+ bytes are free there"):
            writer.wait_committed(2)
        disk.remount("size=8m")
        writer.write(3, 0, LARGE, {})
        writer.wait_committed(3)
        assert torch.equal(open_checkpoint(disk.path / "checkpoints").tensors()["x"], LARGE["x"])


@pytest.mark.parametrize("if_unwritable", ["fail", "go_on"])
def test_a_directory_that_has_become_read_only(tmp_path: Path, if_unwritable: Any) -> None:
    with small_disk(tmp_path / "disk", kibibytes=1024) as disk:
        writer = CheckpointWriter(disk.path, dist.HashStore(), 1, "first", 1, if_unwritable)
        writer.write(1, 0, sample(0, 1), {})
        disk.remount("ro")
        if if_unwritable == "fail":
            with pytest.raises(
                OutputError, match="rank 0 cannot write the checkpoint of step 2 .*Read-only file system"
            ):
                writer.write(2, 0, sample(0, 2), {})
        else:
            writer.write(2, 0, sample(0, 2), {})
        with pytest.raises(OutputError, match="of step 2, is not written: rank 0 .*Read-only file system"):
            writer.wait_committed(2)
        assert_holds(disk.path / "step-00000001", 1, num_ranks=1)


def test_what_killed_attempts_have_begun_can_be_removed_before_there_is_room_for_another(tmp_path: Path) -> None:
    """Half-written checkpoints once stayed until the next one was whole, which on a full disk none ever was."""
    write_checkpoint(tmp_path, 1)
    for step, attempt in ((2, "a"), (3, "b")):
        CheckpointWriter(tmp_path, dist.HashStore(), 2, attempt, 1).write(step, 0, sample(0, step), {})
    (tmp_path / "mine.partial-a").mkdir()
    remove_unfinished(tmp_path)
    assert list(tree(tmp_path)) == ["mine.partial-a", "step-00000001"]
    remove_unfinished(tmp_path / "none")
