"""Files of tensors that are gathered one by one: those that safetensors writes, and whoever reads them in time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from bllpipe.checkpoint import CheckpointWriter, open_checkpoint
from bllpipe.checkpoint.replicas import ReplicaWriter
from bllpipe.checkpoint.sliced import file_order, save_one_by_one
from bllpipe.utils.slices import WholeTensors, gathered, is_sliced, own_part, slice_of
from bllpipe.utils.tensors import is_finite, restore

ROWS = torch.arange(10.0).reshape(5, 2)


class Mesh:
    def __init__(self, size: int, rank: int) -> None:
        self._size, self._rank = size, rank

    def size(self) -> int:
        return self._size

    def get_local_rank(self) -> int:
        return self._rank


class Sliced:
    """What is used of a DTensor, without the processes of a group: its rows on one rank."""

    def __init__(self, whole: Tensor, size: int, rank: int) -> None:
        self.whole, self.device_mesh, self.dtype, self.shape = whole, Mesh(size, rank), whole.dtype, whole.shape
        self.own = slice_of(whole, self).clone()  # type: ignore[arg-type]

    def to_local(self) -> Tensor:
        return self.own

    def full_tensor(self) -> Tensor:
        return self.whole

    def numel(self) -> int:
        return self.whole.numel()


def tensors(sliced: bool) -> dict[str, Tensor]:
    weight: object = Sliced(ROWS, 2, 0) if sliced else ROWS
    return {
        "model.a.weight": weight,  # type: ignore[dict-item]
        "model.a.num_batches_tracked": torch.tensor(3),
        "model.naïve": torch.ones(2, dtype=torch.bfloat16),
        "books.empty": torch.zeros(0, 3),
    }


def test_the_file_is_that_of_safetensors(tmp_path: Path) -> None:
    whole = WholeTensors(tensors(sliced=True), file_order(tensors(sliced=True)))
    save_one_by_one(whole, tmp_path / "ours")
    save_file(tensors(sliced=False), tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / name) for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in ours)
    assert (tmp_path / "ours").stat().st_size == (tmp_path / "theirs").stat().st_size


@pytest.mark.parametrize(("size", "rows"), [(2, [3, 2]), (4, [2, 2, 1, 0]), (7, [1, 1, 1, 1, 1, 0, 0])])
def test_slices_are_those_of_torch(size: int, rows: list[int]) -> None:
    parts = [Sliced(ROWS, size, rank).to_local() for rank in range(size)]
    assert [len(part) for part in parts] == rows
    assert torch.equal(torch.cat(parts), ROWS)


def test_a_rank_restores_and_checks_its_own_slice() -> None:
    own: object = Sliced(torch.zeros(5, 2), 2, 1)
    restore({"model.a.weight": own}, {"model.a.weight": ROWS})  # type: ignore[dict-item]
    assert torch.equal(own_part(own), ROWS[3:])  # type: ignore[arg-type]
    assert is_finite(own)  # type: ignore[arg-type]
    own_part(own)[0, 0] = torch.nan  # type: ignore[arg-type]
    assert not is_finite(own)  # type: ignore[arg-type]
    assert is_sliced(own) and not is_sliced(ROWS) and gathered(ROWS) is ROWS  # type: ignore[arg-type]


def test_all_replicas_gather_alike_though_one_of_them_writes(tmp_path: Path) -> None:
    """Also if the first one has given up writing: the others wait in the next gathering."""
    store, gatherings = dist.HashStore(), list[Tensor]()

    def gather(tensor: Tensor) -> Tensor:
        gatherings.append(tensor)
        return gathered(tensor)

    (tmp_path / "full").touch()
    for folder, reads in ((tmp_path / "checkpoints", True), (tmp_path / "full", False)):
        writer = CheckpointWriter(folder, store, 1, "0", keep=1, if_unwritable="go_on")
        replicas = [ReplicaWriter(writer, store, "block 0", range(2), number, gather) for number in (1, 0)]
        for replica in replicas:
            gatherings.clear()
            replica.write(4 if reads else 8, 0, tensors(sliced=True), {"rank": 0})
            assert len(gatherings) == 1
    assert torch.equal(open_checkpoint(tmp_path / "checkpoints").tensors()["model.a.weight"], ROWS)


def test_tensors_are_read_in_one_order() -> None:
    sliced: dict[str, Tensor] = {name: Sliced(ROWS, 2, 0) for name in ("a", "b")}  # type: ignore[misc]
    whole = WholeTensors(sliced, ["b", "a"])
    assert list(whole) == ["b", "a"] and len(whole) == 2
    with pytest.raises(AssertionError, match="expected b to be read next, got a"):
        whole["a"]
