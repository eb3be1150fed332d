"""Which checkpoint is taken, what is said about the others, and when none is."""

import shutil
from pathlib import Path

import pytest
import torch

from bllpipe.checkpoint import Checkpoint, find_checkpoint, open_checkpoint
from bllpipe.checkpoint.format import DirectoryName, FileEntry
from bllpipe.errors import CheckpointError
from tests.support.checkpoint_samples import flip_bit, sample, write_checkpoint


def find(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint found, and the warnings on the way."""
    warnings: list[str] = []
    return find_checkpoint(directory, warnings.append), warnings


def damage(path: Path) -> None:
    flip_bit(path / "rank-1.safetensors", 777)


def test_there_is_none_at_all(tmp_path: Path) -> None:
    assert find(tmp_path / "absent") == (None, [])
    assert find(tmp_path) == (None, [])
    (tmp_path / "step-00000001.partial-first").mkdir()
    (tmp_path / "step-1").mkdir()
    (tmp_path / "notes").write_text("mine")
    assert find(tmp_path) == (None, [])
    assert find(tmp_path / "notes") == (None, [])


def test_the_newest_is_taken_by_number(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 5):
        write_checkpoint(tmp_path, step)
    found, warnings = find(tmp_path)
    assert found is not None and found.step == 100_000_000 and warnings == []


def test_a_damaged_one_is_reported_and_the_one_before_it_taken(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
    damage(tmp_path / "step-00000003")
    (tmp_path / "step-00000002" / "manifest.json").unlink()
    found, warnings = find(tmp_path)
    assert found is not None and found.step == 1
    assert torch.equal(found.tensors()["block1.weight"], sample(1, 1)["block1.weight"])
    assert len(warnings) == 2
    assert "rank-1.safetensors is damaged" in warnings[0] and "step-00000003" in warnings[0]
    assert "manifest.json is missing" in warnings[1] and "step-00000002" in warnings[1]


def test_when_all_are_damaged_the_run_refuses(tmp_path: Path) -> None:
    for step in (1, 2):
        damage(write_checkpoint(tmp_path, step))
    with pytest.raises(CheckpointError, match="all 2 checkpoints in .* are damaged; to start over"):
        find(tmp_path)


def test_an_empty_directory_or_a_file_with_the_name_of_a_checkpoint_counts_as_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000002").write_bytes(b"")
    with pytest.raises(CheckpointError, match="all 2 checkpoints in"):
        find(tmp_path)


def test_a_directory_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(CheckpointError, match=f"{tmp_path} cannot be read: Permission denied"):
        find(tmp_path)


def test_one_that_was_moved_aside_stands_in_for_a_missing_or_damaged_successor(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1)
    aside = write_checkpoint(tmp_path, 2).rename(tmp_path / "step-00000002.replaced-second")
    found, warnings = find(tmp_path)
    assert found is not None and (found.path, found.step, warnings) == (aside, 2, [])
    damage(write_checkpoint(tmp_path / "other", 2))
    shutil.move(tmp_path / "other" / "step-00000002", tmp_path)
    found, warnings = find(tmp_path)
    assert found is not None and found.path == aside and len(warnings) == 1


@pytest.mark.parametrize("path", ["checkpoints/step-00000001", "checkpoints", ".", "latest"])
def test_a_path_may_be_a_checkpoint_or_the_directories_above(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "checkpoints", 1)
    (tmp_path / "latest").symlink_to(tmp_path / "checkpoints" / "step-00000001")
    assert open_checkpoint(tmp_path / path).path == tmp_path / "checkpoints" / "step-00000001"
    monkeypatch.chdir(tmp_path / path)
    assert open_checkpoint(Path(".")).step == 1


def test_the_newest_of_a_run_is_opened(tmp_path: Path) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path / "checkpoints", step)
    assert open_checkpoint(tmp_path).step == 2


def test_whoever_names_a_run_gets_its_newest_or_an_error(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1)
    damage(write_checkpoint(tmp_path, 2))
    with pytest.raises(CheckpointError, match="is damaged: .*; use an older checkpoint, or --resume auto"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("path", ["absent", ".", "file"])
def test_a_path_without_checkpoints_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="holds no checkpoint; use a run directory or one of its checkpoints"):
        open_checkpoint(tmp_path / path)


def test_an_absent_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="step-00000009/manifest.json is missing"):
        open_checkpoint(tmp_path / "step-00000009")


def test_one_that_was_renamed_is_told_and_passed_over(tmp_path: Path) -> None:
    for step in (1, 2):
        write_checkpoint(tmp_path, step)
    (tmp_path / "step-00000002").rename(tmp_path / "step-2")
    (tmp_path / "latest").symlink_to("step-00000001")
    found, warnings = find(tmp_path)
    assert found is not None and found.step == 1
    assert warnings == [
        "skipped step-2: it holds a manifest, but its name is not that of a checkpoint, such as step-00000120"
    ]


def test_when_all_were_renamed_the_run_does_not_start_over(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1).rename(tmp_path / "backup")
    with pytest.raises(CheckpointError, match="all 1 checkpoints in .* are damaged; to start over, use"):
        find(tmp_path)


@pytest.mark.parametrize("digits", [19, 200, 5000])
def test_a_step_beyond_all_numbers_is_no_name(digits: int) -> None:
    assert DirectoryName.parse("step-" + "9" * digits) is None


def test_a_rank_reads_the_bytes_of_the_parts_that_it_needs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, 5, {rank: sample(rank, 5) for rank in range(4)})
    read: list[str] = []
    verify = FileEntry.verify

    def noted(entry: FileEntry, path: Path) -> None:
        read.append(path.name)
        verify(entry, path)

    monkeypatch.setattr(FileEntry, "verify", noted)
    checkpoint = open_checkpoint(tmp_path, sizes_only=True)
    assert read == []
    checkpoint.verify({"block2.weight", "of no part"})
    assert read == ["rank-2.safetensors"]


def test_a_part_that_is_needed_and_damaged_is_refused(tmp_path: Path) -> None:
    part = write_checkpoint(tmp_path, 5) / "rank-1.safetensors"
    flip_bit(part, 8 * part.stat().st_size - 1)  # of a value: the header is read at once
    checkpoint = open_checkpoint(tmp_path, sizes_only=True)
    checkpoint.verify({"block0.weight"})
    with pytest.raises(CheckpointError, match=r"rank-1\.safetensors is damaged"):
        checkpoint.verify({"block1.weight"})
