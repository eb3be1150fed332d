"""Files that are none, that have no end, or that promise what nobody could hold: refused, and in little memory."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bllpipe.checkpoint import Checkpoint, open_checkpoint, reader
from bllpipe.checkpoint.format import Manifest, file_names
from bllpipe.checkpoint.reader import MAX_HEADER_BYTES, TensorEntry, check_header, file_metadata, tensor_entries
from bllpipe.errors import CheckpointError
from bllpipe.utils.files import MAX_DEPTH
from bllpipe.utils.tensors import restore
from tests.support.checkpoint_samples import DTYPES, edit_json, reseal, write_checkpoint
from tests.support.memory import little_memory

FILES = ["manifest.json", *sorted(file_names(2))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole checkpoint of two ranks."""
    return write_checkpoint(tmp_path, 120)


def safetensors(header: object, num_bytes: int = 0) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(num_bytes)


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def link_to_the_real_one(path: Path) -> None:
    path.with_name("real").write_bytes(path.with_suffix(".kept").read_bytes())
    path.symlink_to(path.with_name("real"))


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (Path.mkdir, "a directory"),
        (os.mkfifo, "a pipe"),
        (link_to_itself, "a link"),
        (link_to_the_real_one, "a link"),
        (link_to_a_device, "a link"),
    ],
)
def test_what_is_no_file_is_not_opened(path: Path, name: str, make: Callable[[Path], object], kind: str) -> None:
    (path / name).rename((path / name).with_suffix(".kept"))
    make(path / name)
    with pytest.raises(CheckpointError, match=f"{name} is damaged: it is {kind}; expected the file that was written"):
        open_checkpoint(path)


def test_a_name_that_no_system_takes_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: embedded null byte"):
        tensor_entries(tmp_path / "a\0b")
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        tensor_entries(tmp_path / ("a" * 5000))


def test_links_in_a_circle_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(CheckpointError, match="one cannot be read: .*; use a run directory or a checkpoint"):
        open_checkpoint(tmp_path / "one")


@pytest.mark.parametrize("deep", [{"a": [[[[]]]] * 3}, {"a": {"b": {"c": []}}}])
def test_json_of_some_depth_is_read(path: Path, deep: object) -> None:
    edit_json(path / "rank-0.json", deep=deep)
    reseal(path)
    assert open_checkpoint(path).metadata()[0]["deep"] == deep


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_in_which_one_would_get_lost_is_refused(path: Path, opening: str) -> None:
    closing = {"[": "]"}.get(opening, "}")
    text = '{"deep": ' + opening * MAX_DEPTH + ("1" if opening != "[" else "") + closing * MAX_DEPTH + "}"
    (path / "rank-0.json").write_text(text)
    reseal(path)
    with pytest.raises(CheckpointError, match="rank-0.json is damaged: it is nested deeper than 50 levels"):
        open_checkpoint(path).metadata()


@pytest.mark.parametrize("facts", [{}, {"config": 1}, {"config": [1e400]}])
def test_facts_without_a_config_are_refused(path: Path, facts: object) -> None:
    (path / "rank-0.json").write_text(json.dumps(facts))
    reseal(path)
    with pytest.raises(CheckpointError, match="step-00000120 does not hold the config that it was written with"):
        open_checkpoint(path).config()


@pytest.mark.parametrize("changes", [{"step": True}, {"world_size": True}, {"step": 1e400}, {"world_size": 2.0}])
def test_numbers_of_another_kind_are_no_numbers(path: Path, changes: dict[str, object]) -> None:
    edit_json(path / "manifest.json", **changes)
    with pytest.raises(CheckpointError, match=r"manifest.json (is damaged: it is not|was changed|does not list)"):
        Manifest.read(path)


def test_a_header_that_nobody_needs_is_not_read(path: Path) -> None:
    header = {f"{number:06}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(100_000)}
    (path / "rank-0.safetensors").write_bytes(safetensors(header))
    reseal(path)
    needed = r"expected a header of at most 4,194,304 bytes, got 6,[\d,]+"
    with little_memory(), pytest.raises(CheckpointError, match=needed):
        open_checkpoint(path).tensors()


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_HEADER_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"rank-0.safetensors is not .*: expected a header .*, got \d+"):
        write_checkpoint(tmp_path, 1)
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_ten_gigabytes_of_nothing_are_not_loaded(tmp_path: Path) -> None:
    """The file is sparse: nobody has so much. Its shape is seen before a byte of it is read."""
    number = 10**10
    path = tmp_path / "rank-0.safetensors"
    path.write_bytes(safetensors({"weight": {"dtype": "F32", "shape": [number // 4], "data_offsets": [0, number]}}))
    os.truncate(path, path.stat().st_size + number)
    needed = r"holds weight as float32\[2500000000\], but this run needs float32\[4\]"
    with little_memory(), pytest.raises(CheckpointError, match=needed):
        restore({"weight": torch.zeros(4)}, Checkpoint(tmp_path, 1, 1).mapped())


def test_a_tensor_in_two_ranks_is_named_without_end_and_without_escapes(path: Path) -> None:
    name = "\033[2J" + "x" * 9999
    for rank in range(2):
        header = {name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
        (path / f"rank-{rank}.safetensors").write_bytes(safetensors(header, 1))
    reseal(path)
    with pytest.raises(CheckpointError, match=r"both hold '\\x1b\[2Jxx") as caught:
        open_checkpoint(path).mapped()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes_are_known_without_reading(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.zeros(3, 16, dtype=torch.uint8).view(dtype)
    path = write_checkpoint(tmp_path, 1, {0: {"x": tensor, "none": tensor[:0]}})
    entries = tensor_entries(path / "rank-0.safetensors")
    assert entries["x"].shape == tuple(tensor.shape) and entries["x"].bytes == 48
    assert entries["none"] == TensorEntry(entries["x"].dtype, (0, *tensor.shape[1:]))
    assert file_metadata(path / "rank-0.safetensors") == {}


def test_the_largest_header_is_that_of_many_tensors() -> None:
    assert MAX_HEADER_BYTES >= 100 * 40_000


def test_a_file_that_the_system_does_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rank-0.safetensors"
    path.write_bytes(bytes(16))

    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match="rank-0.safetensors cannot be read: Input/output error"):
        check_header(path)
