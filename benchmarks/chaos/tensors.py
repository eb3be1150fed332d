"""Hostile safetensors: in a checkpoint whose manifest was made to fit them, and as the file of an exported network."""

from __future__ import annotations

import json
import os
import random
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from benchmarks.chaos.cases import Families, MakeCase
from benchmarks.chaos.hostile import (
    Harm,
    Write,
    disguised,
    file_case,
    mutated,
    no_file,
    noise,
    of_kinds,
    plain_pickle,
    sparse,
    unharmed,
)
from bllpipe.checkpoint import open_checkpoint
from bllpipe.checkpoint.format import MANIFEST, DirectoryName, FileEntry, Manifest, metadata_file, tensor_file
from bllpipe.tools.analysis.network_file import load_network, whole_network
from bllpipe.utils.files import render
from bllpipe.utils.tensors import restore

RESNET = {"model": "resnet18", "stem": "cifar", "width": "1", "image_shape": "[1, 8, 8]", "num_classes": "2"}
SMALL = 1 << 20  # files that are read to their end are no larger

Header = Callable[[random.Random], tuple[Any, int]]  # what the header says, and how many bytes follow


def tensor_families() -> Families:
    with torch.device("meta"):
        whole_network(RESNET)  # torch takes its time for the first network without memory, and 150 MiB
    return {"tensors of a checkpoint": _shards(), "exported networks": _networks()}


def own() -> dict[str, torch.Tensor]:
    """What the checkpoint is loaded into."""
    return {"weight": torch.zeros(4, 3), "steps": torch.zeros((), dtype=torch.int64)}


def _shards() -> MakeCase:
    case = partial(file_case, tensor_file(0), read=unharmed(_read_shard))
    good = partial(mutated, lambda draws: save(own()))
    return of_kinds(
        {
            **{name: case(write=_with_header(make)) for name, make in HEADERS.items()},
            "a length that lies": case(write=_lying_length),
            "no file": case(write=no_file),
            "random bytes": case(write=noise(b"", bytes(8), b"\x10" + bytes(7), b"PK\3\4", b"\x7fELF")),
            "a pickle": case(write=disguised(plain_pickle, pickle_by_torch, pickle_in_a_zip)),
            "a tensor without end": case(write=_endless),
            "a good one, changed": case(write=good(), may_pass=True),
        }
    )


def _read_shard(path: Path) -> None:
    """As a resumed run reads it; somebody has made a manifest that fits."""
    checkpoint = path.parent / str(DirectoryName(1))
    checkpoint.mkdir()
    if os.path.lexists(path):
        path.rename(checkpoint / path.name)
    (checkpoint / metadata_file(0)).write_bytes(render({"rank": 0, "config": {}}))
    (checkpoint / MANIFEST).write_bytes(render(Manifest(1, 1, _sealed(checkpoint)).to_record()))
    restore(own(), open_checkpoint(checkpoint).mapped())


def _sealed(checkpoint: Path) -> dict[str, FileEntry]:
    names = (tensor_file(0), metadata_file(0))
    return {name: FileEntry.of(file) if (file := checkpoint / name).is_file() else FileEntry(0, "") for name in names}


def _with_header(make: Header) -> Write:
    def write(draws: random.Random, path: Path) -> str:
        header, num_bytes = make(draws)
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(num_bytes))
        return f"{text[:100].decode(errors='replace')} and {num_bytes} bytes"

    return write


def _entry(dtype: Any, shape: Any, start: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _offsets(draws: random.Random) -> tuple[Any, int]:
    """Overlaps, holes, ends before starts, ends outside of the file."""
    start, end = draws.choice(
        [(0, 24), (24, 72), (56, 104), (48, 0), (-48, 0), (2**63, 2**63 + 48), (8.0, 56.0), (0, 2**64 - 1)]
    )
    return {"weight": _entry("F32", [4, 3], start, end), "steps": _entry("I64", [], 48, 56)}, draws.choice([0, 55, 57])


def _shape(draws: random.Random) -> tuple[Any, int]:
    odd = [[12], [3, 4], [4, 3, 1], [1, 3], [], [0], [4, -3], [2**32, 2**32], [2**63], [4.0, 3.0], "4", None, [[4]]]
    shape = draws.choice([*odd, [1] * 70, [1] * 100_000])
    return {"weight": _entry("F32", shape, 0, 48)}, 48


def _fitting_shape(draws: random.Random) -> tuple[Any, int]:
    """A whole file of another tensor than is needed: ``copy_`` would stretch or convert it."""
    dtype, size, shape = draws.choice(
        [
            ("F32", 4, []),
            ("F32", 4, [3]),
            ("F32", 4, [1, 3]),
            ("F32", 4, [4, 1]),
            ("F64", 8, [4, 3]),
            ("I32", 4, [4, 3]),
            ("BOOL", 1, [4, 3]),
        ]
    )
    num_bytes = size * torch.Size(shape).numel()
    return {"weight": _entry(dtype, shape, 0, num_bytes)}, num_bytes


def _dtype(draws: random.Random) -> tuple[Any, int]:
    dtype = draws.choice(
        ["OBJECT", "F33", "", "f32", "F4", "F6_E2M3", "F8_E8M0", "U64", "C64", 32, None, ["F32"], "F32\0"]
    )
    return {"weight": _entry(dtype, [4, 3], 0, 48)}, 48


def _structure(draws: random.Random) -> tuple[Any, int]:
    whole: list[Any] = [[], 1, None, "x", {"weight": 1}, {"weight": []}, {"weight": {}}, {"weight": {"dtype": "F32"}}]
    texts = [b"", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xff", b'{"weight": 1e400}', b"null", b" " * 1000]
    odd: list[Any] = [1, [], {"a": 1}, {"a": {"b": "c"}}, None]
    metadata = [{"__metadata__": value} for value in odd]
    broken = {"weight": _entry("F32", [4, 3], 0, 40)}
    return draws.choice([*whole, *texts, *({**broken, **each} for each in metadata)]), 48


def _many(draws: random.Random) -> tuple[Any, int]:
    number = draws.choice([1000, 50_000, 100_000])
    header = {f"{'x' * draws.choice([1, 50])}{n}": _entry("F32", [0], 0, 0) for n in range(number)}
    return {**header, "weight": _entry("F32", [12], 0, 48)}, 48


def _names(draws: random.Random) -> tuple[Any, int]:
    name = draws.choice(["\033[2J", "x" * 100_000, "", "../../a", "a\0b", "\u202e"])
    return {name: _entry("F32", [12], 0, 48), "weight": _entry("F32", [1], 48, 52)}, 52


HEADERS: dict[str, Header] = {
    "offsets": _offsets,
    "a shape": _shape,
    "a shape that fits another tensor": _fitting_shape,
    "a dtype": _dtype,
    "a structure": _structure,
    "many tensors": _many,
    "names": _names,
}


def _lying_length(draws: random.Random, path: Path) -> str:
    good = save(own())
    true = struct.unpack("<Q", good[:8])[0]
    length = draws.choice([0, 1, true - 1, true + 1, len(good), 99_000_000, 2**31, 2**32 + true, 2**63, 2**64 - 1])
    path.write_bytes(struct.pack("<Q", length) + good[8:])
    return f"{length:,} in place of {true}"


def _endless(draws: random.Random, path: Path) -> str:
    """A tensor that lies on no disk; not of terabytes, as its SHA-256 is taken twice."""
    number = draws.randrange(400 << 20, 600 << 20) // 12 * 12
    header = json.dumps({"weight": _entry("F32", [number // 12, 3], 0, number)}).encode()
    return sparse(struct.pack("<Q", len(header)) + header, size := 8 + len(header) + number, size + 1)(draws, path)


def pickle_by_torch(harm: Harm, path: Path) -> None:
    torch.save(harm, path)


def pickle_in_a_zip(harm: Harm, path: Path) -> None:
    plain_pickle(harm, path.with_name("pickle"))
    with zipfile.ZipFile(path, "w") as file:
        file.write(path.with_name("pickle"), "archive/data.pkl")


def _networks() -> MakeCase:
    case = partial(file_case, "network.safetensors", read=unharmed(load_network))
    return of_kinds(
        {
            "metadata": case(write=_odd_metadata),
            "weights": case(write=_odd_weights),
            "no file": case(write=no_file),
            "a file without end": case(write=sparse(struct.pack("<Q", 2) + b"{}")),
            "a pickle": case(write=disguised(plain_pickle, pickle_by_torch, pickle_in_a_zip)),
            **{name: case(write=_with_header(make)) for name, make in HEADERS.items()},
            "a good one, changed": case(write=mutated(lambda draws: save(_network(), RESNET)), may_pass=True),
        }
    )


def _network() -> dict[str, torch.Tensor]:
    return dict(whole_network(RESNET).state_dict())


def _odd_metadata(draws: random.Random, path: Path) -> str:
    odd = [
        "",
        "0",
        "-1",
        "2.5",
        "1e400",
        "9" * 5000,
        "1000000",
        "999999",
        "٣",
        "[",
        "null",
        "os:system",
        "resnet999",
        "\0",
    ]
    shapes = ["[]", "3", "[1e400]", "[true]", '["1"]', "[" * 50_000, "[999999, 8, 8]", "[-1]", "{}", "NaN", "[2, 8, 8]"]
    key = draws.choice(sorted(RESNET))
    value = draws.choice(shapes if key == "image_shape" else odd)
    changed = {name: text for name, text in {**RESNET, key: value}.items() if name != key or draws.random() < 0.9}
    path.write_bytes(save(_network(), changed))
    return f"{key} is {changed.get(key)!r:.60}"


def _odd_weights(draws: random.Random, path: Path) -> str:
    weights = _network()
    name = draws.choice(sorted(weights))
    value = weights.pop(name)
    kind = draws.choice(["missing", "renamed", "of another dtype", "of another shape", "joined by another"])
    changed = {
        "missing": {},
        "renamed": {f"{name}x": value},
        "of another dtype": {name: value.to(torch.float64 if value.is_floating_point() else torch.float32)},
        "of another shape": {name: value.unsqueeze(0)},
        "joined by another": {name: value, "more": value.clone()},
    }[kind]
    path.write_bytes(save({**weights, **changed}, RESNET))
    return f"{name} is {kind}"
