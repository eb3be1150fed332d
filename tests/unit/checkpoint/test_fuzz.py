"""Whatever stands in a checkpoint's files, there is what was written or a CheckpointError, and never anything else."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bllpipe.checkpoint import open_checkpoint
from bllpipe.checkpoint.format import DirectoryName, Manifest
from bllpipe.checkpoint.reader import mapped_tensors, tensor_entries
from bllpipe.errors import CheckpointError
from bllpipe.utils.files import read_record, render, write_record
from tests.support.checkpoint_samples import write_checkpoint
from tests.support.fuzzing import ODD_TEXT, VALUES, fuzz

ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F64", "BF16", "U8", "I64", "BOOL", "F8_E4M3", "F4", "C64"]) | VALUES,
        "shape": st.lists(st.integers(-1, 5) | st.integers(2**31, 2**64), max_size=4) | VALUES,
        "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2) | VALUES,
    },
)
METADATA = st.dictionaries(ODD_TEXT, ODD_TEXT, max_size=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints"), 7)


@fuzz(200)
@given(st.dictionaries(ODD_TEXT, VALUES, max_size=4))
def test_what_is_written_is_read_back(tmp_path: Path, record: dict[str, Any]) -> None:
    write_record(tmp_path / "record", record)
    found, content = read_record(tmp_path / "record")
    assert repr(found) == repr(json.loads(render(record))) and content == render(found)


@fuzz(200)
@given(st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_record_or_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record").write_bytes(content)
    try:
        assert isinstance(read_record(tmp_path / "record")[0], dict)
    except CheckpointError as error:
        assert "record is damaged" in str(error) and len(str(error)) < 1000


@fuzz(300)
@given(
    st.dictionaries(st.sampled_from(["format", "step", "world_size", "files", "sha256", "more"]), VALUES, min_size=1)
)
def test_no_field_of_a_manifest_can_be_edited(whole: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    record = json.loads((whole / "manifest.json").read_bytes())
    edited = render({**record, **changes})
    if edited == render(record):
        return
    (tmp_path / "manifest.json").write_bytes(edited)
    with pytest.raises(CheckpointError, match="manifest.json") as caught:
        Manifest.read(tmp_path)
    assert len(str(caught.value)) < 1000


@fuzz(300)
@given(st.integers(min_value=0), st.binary(min_size=1, max_size=8), st.sampled_from(["manifest.json", "rank-1.json"]))
def test_no_bytes_can_be_changed(whole: Path, place: int, content: bytes, name: str) -> None:
    original = (whole / name).read_bytes()
    at = place % len(original)
    changed = original[:at] + content + original[at + len(content) :]
    (whole / name).write_bytes(changed)
    try:
        if changed == original:
            open_checkpoint(whole)
        else:
            with pytest.raises(CheckpointError, match=name):
                open_checkpoint(whole)
    finally:
        (whole / name).write_bytes(original)


@fuzz(400)
@given(st.dictionaries(ODD_TEXT, ENTRIES, max_size=3), st.none() | METADATA, st.integers(0, 64), st.integers(-3, 3))
def test_any_header_is_tensors_or_an_error(
    tmp_path: Path, entries: dict[str, Any], metadata: dict[str, str] | None, num_bytes: int, lie: int
) -> None:
    header = json.dumps({**entries, **({} if metadata is None else {"__metadata__": metadata})}).encode()
    path = tmp_path / "rank-0.safetensors"
    path.write_bytes(struct.pack("<Q", max(0, len(header) + lie)) + header + bytes(num_bytes))
    try:
        tensors = mapped_tensors(path)
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
            name: entry.shape for name, entry in tensor_entries(path).items()
        }
        assert all(isinstance(tensor.clone(), torch.Tensor) for tensor in tensors.values())
    except CheckpointError as error:
        assert "is not a safetensors file that can be read" in str(error) and len(str(error)) < 1000


@fuzz(300)
@given(st.from_regex(r"step-[0-9]{0,30}(\.(partial|replaced|other)-?.{0,8})?", fullmatch=True) | ODD_TEXT)
def test_a_name_is_read_as_it_would_be_written(name: str) -> None:
    found = DirectoryName.parse(name)
    assert found is None or str(found) == name


@fuzz(200)
@given(
    st.integers(0, 10**18 - 1),
    st.sampled_from(["whole", "partial", "replaced"]),
    st.from_regex(r"[A-Za-z0-9._-]+", fullmatch=True),
)
def test_every_name_can_be_read(step: int, state: Any, attempt: str) -> None:
    name = DirectoryName(step, state, "" if state == "whole" else attempt)
    assert DirectoryName.parse(str(name)) == name
