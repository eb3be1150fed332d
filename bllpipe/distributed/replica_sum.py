"""Sums over the replicas of a block, each of which has added up what its own shards of a batch contribute.

``ordered`` does the additions of one fixed tree (utils/tree_sum.py), so that the bits do not depend on the number of
replicas. Every tensor is a part of one long vector, which is cut into as many chunks as there are replicas; each
replica adds up one chunk, in the order of the tree:

    replica 0  [chunk 0 | chunk 1]  -- its chunk 1 -->  adds up chunk 1  -- the sum -->  replica 0
    replica 1  [chunk 0 | chunk 1]  -- its chunk 0 -->  adds up chunk 0  -- the sum -->  replica 1

Of n bytes each of R replicas sends 2 n (R - 1) / R, as in a ring. A replica whose shards are not one node of the tree
sends several. ``native`` is the backend's all-reduce: its order of additions depends on the number of replicas.

Messages go over gloo, through the memory of the CPU. A message that is larger than its receive would kill the
receiver, so the replicas first compare over the store what they add up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from bllpipe.errors import WireError
from bllpipe.messages import Passes, Store
from bllpipe.utils.tree_sum import Node, Sums, TreeSum, nodes_of

PRESENT = "present"  # in front of the names of optional tensors: 1.0 where a shard has it
Flat = dict[str, Tensor]  # one long vector for every dtype, [chunks, elements]


class ReplicaSum:
    """This process's end of the sums of replica ``number`` of those on ``ranks``, in ``group``, with ``held`` passes
    each. ``optional`` are tensors like those that some shards may lack, by name."""

    def __init__(
        self,
        name: str,
        ranks: Sequence[int],
        number: int,
        held: Sequence[Passes],
        group: Any,
        store: Store,
        optional: Mapping[str, Tensor],
        ordered: bool = True,
    ) -> None:
        self._name, self._ranks, self._number, self._held = name, ranks, number, held
        self._group, self._store, self._optional, self._ordered = group, store, optional, ordered
        self._packings: dict[tuple[int, tuple[str, ...]], Packing] = {}
        self.sent_bytes = 0

    def total(self, own: TreeSum) -> Sums:
        """The sum of the trees of all replicas that have one; all of them call this, and get the same. A replica that
        has none gets nothing."""
        if not own.nodes:
            return {}
        number = own.num_shards
        nodes = [nodes_of(range(held.own.start, min(held.own.stop, number)), number) for held in self._held]
        present = [replica for replica, found in enumerate(nodes) if found]
        if self._ordered or len(present) < len(nodes):
            return self._add_in_order(own, nodes, present)
        return self._add_natively(own)

    def _add_in_order(self, own: TreeSum, nodes: Sequence[list[Node]], present: Sequence[int]) -> Sums:
        packing = self._packing(own, len(present))
        packed = {node: packing.pack(sums) for node, sums in sorted(own.nodes.items())}
        places = {replica: place for place, replica in enumerate(present)}
        place = places.pop(self._number)
        chunks = {other: [packing.empty_chunk() for _ in nodes[other]] for other in places}
        self._exchange(
            {
                other: [vectors[at] for flat in packed.values() for vectors in flat.values()]
                for other, at in places.items()
            },
            {other: [vector for chunk in found for vector in chunk.values()] for other, found in chunks.items()},
        )
        tree = TreeSum(own.num_shards)
        for node, flat in packed.items():
            tree.add_node(node, {dtype: vectors[place] for dtype, vectors in flat.items()})
        for other, found in chunks.items():
            for node, chunk in zip(nodes[other], found, strict=True):
                tree.add_node(node, chunk)
        summed, total = tree.total(), packing.empty()
        for dtype, vectors in total.items():
            vectors[place].copy_(summed[dtype])
        self._exchange(
            {other: [vectors[place] for vectors in total.values()] for other in places},
            {other: [vectors[at] for vectors in total.values()] for other, at in places.items()},
        )
        return packing.unpack(total)

    def _add_natively(self, own: TreeSum) -> Sums:
        packing = self._packing(own, 1)
        flats = [packing.pack(sums) for _, sums in sorted(own.nodes.items())]
        total = flats[0]
        for flat in flats[1:]:
            total = {dtype: vector + flat[dtype] for dtype, vector in total.items()}
        for vector in total.values():
            with self._with(self._ranks):
                dist.all_reduce(vector, group=self._group)
            self.sent_bytes += 2 * vector.nbytes * (len(self._ranks) - 1) // len(self._ranks)
        return packing.unpack(total)

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum of ``tensor`` over all replicas, in the backend's order: for statistics within a forward pass."""
        total = tensor.detach().to("cpu", copy=True).contiguous()
        with self._with(self._ranks):
            dist.all_reduce(total, group=self._group)
        return total.to(tensor.device)

    @contextmanager
    def _with(self, ranks: Sequence[int]) -> Iterator[None]:
        """A context that exchanges messages with ``ranks``. Raises WireError if one of them is gone."""
        try:
            yield
        except RuntimeError as error:
            names = " or ".join(f"rank {rank}" for rank in ranks)
            raise WireError(f"{self._name}: {names} is gone: the connection was closed") from error

    def _exchange(self, sent: Mapping[int, Sequence[Tensor]], received: Mapping[int, Sequence[Tensor]]) -> None:
        """Sends tensors to some replicas, and receives others from them; all at once, as a gloo send completes only
        when its receive is posted."""
        works = []
        for send_or_receive, messages in ((dist.irecv, received), (dist.isend, sent)):
            for other, tensors in messages.items():
                with self._with([self._ranks[other]]):
                    for tag, each in enumerate(tensors):  # so that each meets the one of its size
                        works.append((other, send_or_receive(each, self._ranks[other], group=self._group, tag=tag)))
        for other, work in works:
            assert work is not None, "this rank is one of the replicas"
            with self._with([self._ranks[other]]):
                work.wait()
        self.sent_bytes += sum(each.nbytes for tensors in sent.values() for each in tensors)

    def _packing(self, own: TreeSum, num_chunks: int) -> Packing:
        """How what this replica has is packed; compared with the first replica's when it is new."""
        like = {name: tensor for sums in own.nodes.values() for name, tensor in sums.items()}
        if like.keys() & self._optional.keys():
            like |= self._optional
        key = num_chunks, tuple(sorted(like))
        if key not in self._packings:
            packing = Packing(like, self._optional.keys() & like.keys(), num_chunks)
            posted = f"{self._name}/{len(self._packings)}"
            self._store.set(f"{posted}/{self._number}", packing.digest)
            if self._store.get(f"{posted}/0").decode() != packing.digest:
                raise WireError(
                    f"{self._name}: replica {self._number} has other tensors to add up than replica 0; expected the "
                    f"same network in all replicas, with the same terms of the loss in every step"
                )
            self._packings[key] = packing
        return self._packings[key]


class Place(NamedTuple):
    """Where a tensor is in the vector of its dtype."""

    first: int
    last: int
    shape: torch.Size
    device: torch.device


class Packing:
    """Sums of tensors like those of ``like``, by name, as one vector for every dtype, in ``num_chunks`` equal chunks.
    With a tensor that is ``optional`` goes whether there is one."""

    def __init__(self, like: Mapping[str, Tensor], optional: set[str], num_chunks: int) -> None:
        self._optional, self._num_chunks = sorted(optional), num_chunks
        flags = torch.zeros(len(optional), dtype=torch.float32)
        by_dtype: dict[torch.dtype, list[tuple[str, Tensor]]] = {}
        for name, tensor in sorted({**like, PRESENT: flags}.items(), key=lambda each: each[0]):
            by_dtype.setdefault(tensor.dtype, []).append((name, tensor))
        self._groups: dict[str, list[str]] = {}
        self._places: dict[str, Place] = {}
        self._chunks: dict[str, tuple[int, torch.dtype]] = {}  # elements of a chunk
        for dtype, tensors in sorted(by_dtype.items(), key=lambda each: str(each[0])):
            ends = [0, *accumulate(tensor.numel() for _, tensor in tensors)]
            for (name, tensor), (first, last) in zip(tensors, pairwise(ends), strict=True):
                self._places[name] = Place(first, last, tensor.shape, tensor.device)
            self._groups[str(dtype)] = [name for name, _ in tensors]
            self._chunks[str(dtype)] = max(1, -(-ends[-1] // num_chunks)), dtype

    @property
    def digest(self) -> str:
        """The same for packings of tensors with the same names, dtypes and shapes."""
        found = [(name, dtype, self._places[name][:3]) for dtype, names in self._groups.items() for name in names]
        return hashlib.sha256(repr((self._num_chunks, found)).encode()).hexdigest()

    def empty(self) -> Flat:
        """The vectors, [chunks, elements], on the CPU, not initialised."""
        chunks = self._chunks.items()
        return {name: torch.empty(self._num_chunks, size, dtype=dtype) for name, (size, dtype) in chunks}

    def empty_chunk(self) -> Flat:
        """One chunk of them, [elements]."""
        return {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in self._chunks.items()}

    def pack(self, sums: Sums) -> Flat:
        """The vectors with the values of ``sums``; a tensor that is missing is zero."""
        present = torch.tensor([float(name in sums) for name in self._optional], dtype=torch.float32)
        sums, flat = {**sums, PRESENT: present}, self.empty()
        for dtype, names in self._groups.items():
            vector = flat[dtype].view(-1)
            for name in names:
                first, last, *_ = self._places[name]
                if name in sums:
                    vector[first:last].copy_(sums[name].reshape(-1))
                else:
                    vector[first:last].zero_()
            vector[last:].zero_()
        return flat

    def unpack(self, flat: Flat) -> Sums:
        """The sums in the vectors, without what no shard has; views, if they are for the CPU."""
        found: Sums = {}
        for dtype, names in self._groups.items():
            for name in names:
                first, last, shape, device = self._places[name]
                found[name] = flat[dtype].view(-1)[first:last].view(shape).to(device)
        present = found.pop(PRESENT).tolist()
        for name, is_present in zip(self._optional, present, strict=True):
            if not is_present:
                del found[name]
        return found
