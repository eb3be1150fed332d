"""Checkpoints of a block with several replicas: the first one writes its part, once all of them have the same state.
Of a block that lies sharded over them, it gathers one tensor after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bllpipe.checkpoint.sliced import file_order
from bllpipe.checkpoint.writer import CheckpointWriter, Point
from bllpipe.errors import DriftError
from bllpipe.messages import Store
from bllpipe.utils.slices import Gather, WholeTensors, is_sliced
from bllpipe.utils.tensors import part_digest

OWN = "books."  # in front of the names of metrics, which only the first replica has


class ReplicaWriter:
    """Writes through ``writer`` for replica ``number`` of the block whose replicas are on ``ranks``. The replicas
    compare digests of their states first: replicas whose states differ have drifted apart, by a fault of a processor
    or by a network that computes something else in each of them, and no such state becomes a checkpoint. Of sliced
    tensors, which ``gather`` makes whole, there is nothing to compare."""

    def __init__(
        self,
        writer: CheckpointWriter,
        store: Store,
        role: str,
        ranks: Sequence[int],
        number: int,
        gather: Gather | None = None,
    ) -> None:
        self._writer, self._store, self._role, self._ranks, self._number = writer, store, role, ranks, number
        self._gather = gather

    def on(self, point: Point, call: Callable[[int, Path], None]) -> None:
        self._writer.on(point, call)

    def write(self, step: int, part: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Posts the digest of the state, or compares those of all replicas and writes it. Raises DriftError."""
        state = {name: tensor for name, tensor in tensors.items() if not name.startswith(OWN)}
        digest = part_digest({name: tensor for name, tensor in state.items() if not is_sliced(tensor)})
        key = f"drift/{step}/{part}"
        if self._number > 0:
            self._store.set(f"{key}/{self._number}", digest)
            if self._gather is not None:
                WholeTensors(state, file_order(state), self._gather).read_rest()
            return
        others = [self._store.get(f"{key}/{number}").decode() for number in range(1, len(self._ranks))]
        if differing := [str(rank) for rank, other in zip(self._ranks[1:], others, strict=True) if other != digest]:
            ranks = ", ".join(differing)
            raise DriftError(
                f"at step {step} the state of rank {ranks} differs from that of rank {self._ranks[0]} ({self._role}), "
                f"though replicas of a block compute the same; the checkpoint is not written, and those before it are "
                f"untouched. If the network draws from Python's or NumPy's random numbers, use torch's; else check "
                f"that machine"
            )
        if self._gather is None:
            self._writer.write(step, part, tensors, metadata)
            return
        whole = WholeTensors(tensors, file_order(tensors), self._gather)
        self._writer.write(step, part, whole, metadata)
        whole.read_rest()  # a write that is given up has read some alone, and the others gather all

    def wait_committed(self, step: int) -> None:
        self._writer.wait_committed(step)
