"""Pickles that hold data are read, and all others are refused before anything of theirs is imported or called."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bllpipe.data.plain_pickle import load_plain
from bllpipe.errors import DataError
from tests.support.original_files import python2_array, python_batch

REFUSED = "set cannot be read: .*expected a pickle of arrays, bytes, lists and dicts alone, from which nothing is exec"


class Calls:
    """What a hostile pickle asks for."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def test_what_python_2_wrote() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    found = load_plain(python_batch(pixels, labels=[1, 2, 0]), "set")
    assert np.array_equal(found[b"data"], pixels) and found[b"labels"] == [1, 2, 0]


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, ">i4", "<f8", np.bool_])
def test_what_python_3_writes(protocol: int, dtype: Any) -> None:
    array = np.arange(6).astype(dtype).reshape(2, 3)
    content = {
        "data": array,
        b"bytes": [b"\xff\0", "text"],
        "numbers": [1, -2, 1.5, 2**40, None, True, (), (1, 2, 3, 4)],
    }
    content |= {"fortran": np.asfortranarray(array), "again": array, "nested": {"a": []}, "one": [1]}
    found = load_plain(pickle.dumps(content, protocol), "set")
    assert found.keys() == content.keys()
    for key, value in content.items():
        if isinstance(value, np.ndarray):
            assert found[key].dtype == value.dtype and np.array_equal(found[key], value)
        else:
            assert found[key] == value


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_is_executed(protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    hostile = [
        Calls(os.system, f"touch {trace}"),
        Calls(subprocess.check_call, ["touch", str(trace)]),
        Calls(eval, f"open({str(trace)!r}, 'w')"),
        Calls(np.load, str(trace)),
        OrderedDict(a=1),
        Path("a"),
    ]
    for each in hostile:
        content = pickle.dumps({"data": each}, protocol)
        with pytest.raises(DataError, match=REFUSED):
            load_plain(content, "set")
    assert not trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02}",
        b"\x80\x02].",
        b"\x80\x02K\x01.",
        b"\x80\x02cos\nsystem\nU\x02id\x85R.",
        b"\x80\x02cnumpy\nload\nU\x02id\x85R.",
        b"\x80\x02}U\x01aK\x01K\x02\x85R.",  # a call of a number
        b"\x80\x02cnumpy\nndarray\n)R.",
        b"\x80\x02cnumpy\ndtype\nU\x01O\x85R.",
        b"\x80\x02cnumpy\ndtype\nU\x02c8\x85R.",
        b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aU\x03rot\x86R.",
        b"\x80\x02}K\x01a.",
        b"\x80\x02]K\x01K\x02s.",
        b"\x80\x02}K\x01b.",
        b"\x80\x02}q\x01h\x07.",
        b"\x80\x02(i__main__\nA\n.",
        b"\x80\x02}X\xff\xff\xff\x7fabc.",
        b"e" * 100,
        b"\x80\x02}U\x04data"
        + python2_array(np.zeros((2, 2), np.uint8)).replace(b"T\4\0\0\0", b"T\3\0\0\0", 1)
        + b"s.",
        b"\x80\x02}U\x04data"
        + python2_array(np.zeros((2, 2), np.uint8)).replace(b"J\2\0\0\0", b"J\xff\xff\xff\xff")
        + b"s.",
    ],
)
def test_what_is_no_plain_pickle(content: bytes) -> None:
    with pytest.raises(DataError, match=REFUSED):
        load_plain(content, "set")


def test_half_of_a_batch_is_none() -> None:
    content = python_batch(np.zeros((3, 4), np.uint8), labels=[1, 2, 0])
    for end in range(len(content) - 1):
        with pytest.raises(DataError, match=REFUSED):
            load_plain(content[:end], "set")
