"""Nothing damaged passes, and nothing hostile runs."""

import json
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from bllpipe.checkpoint import Checkpoint, open_checkpoint
from bllpipe.checkpoint.format import Manifest, file_names
from bllpipe.errors import CheckpointError
from bllpipe.utils.files import MAX_BYTES
from tests.support.checkpoint_samples import edit_json, flip_bit, reseal, write_checkpoint
from tests.support.memory import little_memory

FILES = ["manifest.json", *sorted(file_names(2))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole checkpoint of two ranks."""
    return write_checkpoint(tmp_path, 120)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 1, 2, 3, -1])
def test_one_flipped_bit_anywhere_is_noticed(path: Path, name: str, place: int) -> None:
    size = 8 * (path / name).stat().st_size
    ends = {0: 0, -1: size - 1}
    flip_bit(path / name, ends.get(place, random.Random(f"{name} {place}").randrange(size)))
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(path)


def test_no_bit_of_the_manifest_can_flip(path: Path) -> None:
    """White space too: there is one rendering of a manifest, and every other is refused."""
    manifest = path / "manifest.json"
    whole = manifest.read_bytes()
    for bit in range(8 * len(whole)):
        flip_bit(manifest, bit)
        with pytest.raises(CheckpointError, match="manifest.json"):
            Manifest.read(path)
        manifest.write_bytes(whole)
    open_checkpoint(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_noticed(path: Path, name: str, left: float) -> None:
    os.truncate(path / name, int(left * (path / name).stat().st_size))
    with pytest.raises(CheckpointError, match=f"{name} (is damaged|was changed)"):
        open_checkpoint(path)


def test_a_file_of_another_size_is_named_with_both_sizes(path: Path) -> None:
    (path / "rank-1.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"rank-1.json is damaged: it has 2 bytes, the manifest says \d+"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(path: Path, name: str) -> None:
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(path: Path, name: str) -> None:
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(CheckpointError, match=f"{name} is damaged: it is a pipe; expected the file that was written"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", FILES)
def test_a_disk_that_cannot_read_is_a_damaged_checkpoint(
    path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    intact = Path.open

    def failing(file: Path, *arguments: Any, **options: Any) -> Any:
        if file.name == name:
            raise OSError(5, "Input/output error")
        return intact(file, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: Input/output error"):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", ["safetensors", "json"])
def test_swapped_files_of_two_ranks_are_noticed(path: Path, kind: str) -> None:
    one, two = path / f"rank-0.{kind}", path / f"rank-1.{kind}"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    with pytest.raises(CheckpointError, match=rf"rank-\d.{kind} is damaged: its SHA-256"):
        open_checkpoint(path)


def test_an_edited_manifest_is_noticed_even_with_the_right_digests_of_files(path: Path) -> None:
    manifest = path / "manifest.json"
    seal = json.loads(manifest.read_bytes())["sha256"]
    (path / "rank-0.json").write_text('{"rank": 1}')
    reseal(path)
    open_checkpoint(path)
    edit_json(manifest, sha256=seal)
    with pytest.raises(CheckpointError, match="manifest.json was changed: its content does not match its own SHA-256"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["step-00000121", "step-00000121.replaced-first"])
def test_a_directory_that_is_called_after_another_step_is_refused(path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="holds step 120, but its name says otherwise"):
        open_checkpoint(path.rename(path.with_name(name)))


def test_files_that_nobody_listed_do_not_matter(path: Path) -> None:
    (path / "rank-2.safetensors").write_bytes(b"garbage")
    (path / "notes.txt").write_text("mine")
    (path / ".rank-0.json").mkdir()
    assert open_checkpoint(path).tensors("block").keys() == open_checkpoint(path).tensors().keys()


def entries(*names: str) -> dict[str, dict[str, Any]]:
    return {name: {"bytes": 0, "sha256": ""} for name in names}


@pytest.mark.parametrize(
    "files",
    [
        entries("rank-0.safetensors", "rank-0.json", "rank-1.safetensors"),
        entries("rank-0.safetensors", "rank-0.json", "rank-1.safetensors", "rank-2.json"),
        entries("rank-0.safetensors", "rank-0.json", "rank-1.safetensors", "../rank-1.json"),
        entries("rank-0.safetensors", "rank-0.json", "rank-1.safetensors", "/etc/passwd"),
        entries("rank-0.safetensors", "rank-0.json", "rank-1.safetensors", "rank-01.json"),
        entries(*sorted(file_names(3))),
        {},
    ],
)
def test_only_the_pairs_of_all_ranks_may_be_listed(path: Path, files: dict[str, Any]) -> None:
    edit_json(path / "manifest.json", files=files)
    with pytest.raises(CheckpointError, match="does not list exactly one pair of files for each of 2 ranks"):
        open_checkpoint(path)


@pytest.mark.parametrize("world_size", [0, -1, 3, 10**18])
def test_an_impossible_number_of_ranks_is_refused(path: Path, world_size: int) -> None:
    edit_json(path / "manifest.json", world_size=world_size)
    with pytest.raises(CheckpointError, match="exactly one pair of files"):
        open_checkpoint(path)


@pytest.mark.parametrize("changes", [{"step": "120"}, {"world_size": 2.5}, {"files": ["rank-0.json"]}, {"step": None}])
def test_a_manifest_with_wrong_types_is_refused(path: Path, changes: dict[str, Any]) -> None:
    edit_json(path / "manifest.json", **changes)
    with pytest.raises(CheckpointError, match="is damaged: it is not a manifest"):
        open_checkpoint(path)


@pytest.mark.parametrize("entry", [{"bytes": "1", "sha256": ""}, {"bytes": 1}, 7, ["bytes", "sha256"]])
def test_a_manifest_with_a_wrong_entry_is_refused(path: Path, entry: object) -> None:
    edit_json(path / "manifest.json", files=dict.fromkeys(file_names(2), entry))
    with pytest.raises(CheckpointError, match="is not the size and SHA-256 of a file"):
        open_checkpoint(path)


@pytest.mark.parametrize("format", [0, 2, "1", None])
def test_another_format_is_said_to_be_one(path: Path, format: object) -> None:
    edit_json(path / "manifest.json", format=format)
    with pytest.raises(CheckpointError, match="has format .*; this version reads format 1"):
        open_checkpoint(path)


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"a": 1} 2', "[" * 200_000, '{"step": ' + "9" * 5000 + "}"])
def test_a_manifest_that_is_not_json_is_refused(path: Path, text: str) -> None:
    (path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="is damaged: it is not JSON"):
        open_checkpoint(path)


@pytest.mark.parametrize("text", ["[]", "1", '"manifest"', "null"])
def test_a_manifest_that_is_not_an_object_is_refused(path: Path, text: str) -> None:
    (path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="it is not a JSON object"):
        open_checkpoint(path)


def test_an_endless_manifest_is_not_read_to_its_end(path: Path) -> None:
    os.truncate(path / "manifest.json", 1 << 40)  # sparse
    with pytest.raises(CheckpointError, match=f"manifest.json is damaged: it has more than {MAX_BYTES:,} bytes"):
        open_checkpoint(path)


def test_facts_that_are_not_json_are_refused(path: Path) -> None:
    (path / "rank-1.json").write_text("[1, 2]")
    reseal(path)
    with pytest.raises(CheckpointError, match="rank-1.json is damaged: it is not a JSON object"):
        open_checkpoint(path).metadata()


class Bomb:
    """A pickle of this makes a directory when it is loaded."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.crater),)


@pytest.mark.parametrize("by_torch", [False, True])
def test_a_pickle_in_disguise_is_not_run(path: Path, tmp_path: Path, by_torch: bool) -> None:
    crater = tmp_path / "crater"
    if by_torch:
        torch.save(Bomb(crater), path / "rank-0.safetensors")
    else:
        (path / "rank-0.safetensors").write_bytes(pickle.dumps(Bomb(crater)))
    reseal(path)
    assert_unreadable(open_checkpoint(path))
    assert not crater.exists()


def header(content: object, length: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def one(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        header(b"{}", length=2**63),
        header(b"{}", length=2**64 - 1),
        header(b"{}", length=99_000_000),
        header(b"[" * 100_000),
        header([1]),
        header(one("F32", [2**40], 0, 2**42)),
        header(one("F32", [2**40, 2**40], 0, 4)) + b"1234",
        header(one("F32", [0, 2**63], 0, 0)),
        header(one("F32", [1], 4, 0)) + b"1234",
        header(one("F32", [-1], 0, 4)) + b"1234",
        header(one("OBJECT", [1], 0, 4)) + b"1234",
        header(one("F32", [1], 0, 4)) + b"12",
        header(one("F32", [1], 0, 4)) + b"12345",
    ],
    ids=str,
)
def test_a_hostile_header_is_refused_within_bounded_memory(path: Path, content: bytes) -> None:
    (path / "rank-0.safetensors").write_bytes(content)
    reseal(path)
    with little_memory():
        assert_unreadable(open_checkpoint(path))


def assert_unreadable(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="rank-0.safetensors is not a safetensors file that can be read"):
        checkpoint.tensors()
