"""Checkpoints for the tests to write, to damage, and to make look whole again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bllpipe.checkpoint import CheckpointWriter, open_checkpoint
from bllpipe.checkpoint.format import MANIFEST, FileEntry, Manifest, file_names

NUM_RANKS = 2
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64),
]


def sample(rank: int, step: int) -> dict[str, Tensor]:
    """A little state that no other rank and no other step has."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return {
        f"block{rank}.weight": torch.randn(4, 3, generator=generator),
        f"block{rank}.steps": torch.tensor(step),
    }


def write_checkpoint(
    directory: Path,
    step: int,
    parts: Mapping[int, Mapping[str, Tensor]] | None = None,
    attempt: str = "first",
    keep: int = 9,
) -> Path:
    """All ranks write ``step``, one after another; ``parts`` is by rank."""
    parts = parts or {rank: sample(rank, step) for rank in range(NUM_RANKS)}
    writer = CheckpointWriter(directory, dist.HashStore(), len(parts), attempt, keep)
    for rank, tensors in parts.items():
        writer.write(step, rank, tensors, {"rank": rank, "step": step})
    writer.wait_committed(step)
    return directory / f"step-{step:08}"


def reseal(path: Path, world_size: int = NUM_RANKS) -> None:
    """Makes the manifest agree with whatever the files hold now, as one who means harm would."""
    step = json.loads((path / MANIFEST).read_bytes())["step"]
    files = {name: FileEntry.of(path / name) for name in file_names(world_size)}
    Manifest(step, world_size, files).write(path)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}, indent=1, sort_keys=True) + "\n")


def flip_bit(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def bits(tensor: Tensor) -> list[int]:
    """Every byte of a tensor, so that NaNs and signed zeros compare too."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def tree(directory: Path) -> Iterator[str]:
    """The names in a directory, in order."""
    return iter(sorted(path.name for path in directory.iterdir()))


def assert_holds(path: Path, step: int, num_ranks: int = 2) -> None:
    """The checkpoint is whole and has the sample state of its step."""
    found = open_checkpoint(path).tensors()
    wanted = {name: tensor for rank in range(num_ranks) for name, tensor in sample(rank, step).items()}
    assert found.keys() == wanted.keys() and all(bits(found[name]) == bits(wanted[name]) for name in wanted)
