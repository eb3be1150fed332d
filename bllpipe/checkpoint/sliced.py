"""Writing tensors that lie sharded over replicas, as a safetensors file of whole tensors: each is gathered when its
turn comes, as all of them together may not fit the memory of one process.

The file is a header of JSON, with the place of every tensor behind it, and their bytes:

    length of the header (8 bytes)  {"name": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, ...}  bytes
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bllpipe.utils.slices import WholeTensors
from bllpipe.utils.tensors import plain

ALIGNMENT = 8  # of the bytes
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names in the order of the file: wide numbers first, so that all are aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def save_one_by_one(whole: WholeTensors, path: Path) -> None:
    """Writes ``whole``, which are read in ``file_order``."""
    places, end = {}, 0
    for name in whole.order:
        tensor = whole.tensors[name]
        begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
        places[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(places, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name in whole.order:
            file.write(plain(whole[name]).reshape(-1).view(torch.uint8).numpy().data)
