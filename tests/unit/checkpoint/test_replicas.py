"""Replicas of a block that have drifted apart are named, and no checkpoint is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bllpipe.checkpoint import CheckpointWriter, find_checkpoint, open_checkpoint
from bllpipe.checkpoint.replicas import ReplicaWriter
from bllpipe.errors import DriftError

RANKS = range(3, 6)  # of block 1


def writers(folder: Path) -> list[ReplicaWriter]:
    store = dist.HashStore()
    whole = CheckpointWriter(folder, store, 1, "0", keep=1)
    return [ReplicaWriter(whole, store, "block 1 replica 0", RANKS, number) for number in range(3)]


def state(value: float, **more: Tensor) -> dict[str, Tensor]:
    return {"model.a.weight": torch.full((3,), value), **more}


def test_the_first_of_equal_replicas_writes(tmp_path: Path) -> None:
    first, *others = writers(tmp_path)
    for other in others:
        other.write(5, 0, state(1.0), {})
        assert find_checkpoint(tmp_path, print) is None
    first.write(5, 0, state(1.0, **{"books.block 1.images": torch.ones(1)}), {"rank": 0})
    for each in (first, *others):
        each.wait_committed(5)
    assert sorted(open_checkpoint(tmp_path).names()) == ["books.block 1.images", "model.a.weight"]


def test_a_replica_that_differs_in_one_bit_is_named(tmp_path: Path) -> None:
    first, second, third = writers(tmp_path)
    second.write(5, 0, state(1.0), {})
    third.write(5, 0, state(1.0 + 2**-23), {})
    with pytest.raises(
        DriftError, match=r"at step 5 the state of rank 5 differs from that of rank 3 \(block 1 replica 0"
    ):
        first.write(5, 0, state(1.0), {})
    assert find_checkpoint(tmp_path, print) is None


def test_points_are_those_of_the_writer(tmp_path: Path) -> None:
    first, *others = writers(tmp_path)
    reached: list[int] = []
    first.on("committed", lambda step, path: reached.append(step))
    for each in (*others, first):
        each.write(2, 0, state(0.0), {})
    assert reached == [2]
