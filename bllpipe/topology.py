"""The roles of ranks, and the directed edges between them: pure data.

  rank 0  --alpha-->  rank 1  --alpha-->  rank 2  --alpha-->  rank 3
   ^ |                 ^ |                 ^ |                 ^ |
target stats        target stats        target stats        target stats
   | v                 | v                 | v                 | v
   +------------------- rank 4: one feedback loop a block -----+

A block may have several replicas, a rank each. A batch is then several shards, of which every replica owns some. The
alpha of a shard goes from its owner in one block to its owner in the next one, here with replicas [2, 3] and 4 shards:

    shards             0         1         2         3
    block 0            rank 0    rank 0    rank 1    rank 1
    block 1            rank 2    rank 3    rank 4    rank 4

Above 64 ranks of blocks there are several feedback ranks, the last ones, each with the loops of consecutive blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, count
from typing import Literal, NamedTuple

from bllpipe.errors import ConfigError
from bllpipe.messages import Passes

EdgeKind = Literal["alpha", "target", "stats"]
# The parts that ranks of a job hold: a block each, which learns locally; in a synchronous pipeline with P ranks
# stage r, or stages r and r + P (a loop), or r and 2P - 1 - r (a V); or a replica of the whole network each.
Placement = Literal["block", "stage", "loop", "v", "replica"]
# How the ranks of blocks follow one another: all replicas of a block, or all blocks of a replica.
Order = Literal["block", "pipeline"]
BLOCKS_OF_A_FEEDBACK_RANK = 64  # ranks of blocks: each has a thread there, which waits for its messages


@dataclass(frozen=True)
class Edge:
    """One directed edge. One edge is one FIFO: nothing else travels on it."""

    kind: EdgeKind
    src: int
    dst: int

    def __str__(self) -> str:
        return f"{self.kind} {self.src}->{self.dst}"


class Seat(NamedTuple):
    """What a rank holds: one replica of one block."""

    block: int
    replica: int


@dataclass(frozen=True)
class Topology:
    """``num_blocks`` blocks in a chain, and ``num_feedback_ranks`` after them, among which the feedback loops of the
    blocks are divided; 0 of them if the network learns end to end.

    ``replicas`` are the numbers of ranks of the blocks, one each if it is empty. A batch is ``num_shards`` shards,
    which go through a block one by one, or with ``joins_shards`` all those of a replica together. Who holds what does
    not depend on the ``order`` of the ranks of blocks, only the numbers of their ranks do: torchrun gives consecutive
    ones to a node.
    """

    num_blocks: int
    num_feedback_ranks: int = 1
    placement: Placement = "block"
    num_shards: int = 1
    replicas: tuple[int, ...] = ()
    joins_shards: bool = False
    order: Order = "block"

    @cached_property
    def seats(self) -> tuple[Seat, ...]:
        """The seats of all ranks but the feedback's. In the order ``pipeline`` they go by the shards that they begin
        with, so that a replica of a block is beside those that it sends to."""
        numbers = self._numbers
        seats = [Seat(block, replica) for block, number in enumerate(numbers) for replica in range(number)]
        if self.order == "pipeline":
            seats.sort(key=lambda seat: (Fraction(seat.replica, numbers[seat.block]), seat.block))
        return tuple(seats)

    @cached_property
    def _numbers(self) -> tuple[int, ...]:
        """The number of replicas of every block."""
        return self.replicas or (1,) * self.num_blocks

    @property
    def world_size(self) -> int:
        return len(self.seats) + self.num_feedback_ranks

    @property
    def block_ranks(self) -> range:
        """All ranks but the feedback's."""
        return range(len(self.seats))

    @property
    def feedback_ranks(self) -> range:
        """The last ranks, which hold the feedback loops."""
        return range(len(self.seats), self.world_size)

    def is_feedback(self, rank: int) -> bool:
        return rank >= len(self.seats)

    def feedback_of(self, block: int) -> int:
        """The rank that holds the feedback loop of ``block``."""
        return self.feedback_ranks[self._feedback[block]]

    def loops_of(self, rank: int) -> list[int]:
        """The blocks whose feedback loops are on the feedback rank ``rank``."""
        return [block for block in range(self.num_blocks) if self.feedback_of(block) == rank]

    @cached_property
    def _feedback(self) -> list[int]:
        """The feedback rank of every block, from 0: consecutive blocks, with about as many ranks for each."""
        numbers, found = self._numbers, list[int]()
        for block, (number, end) in enumerate(zip(numbers, accumulate(numbers), strict=True)):
            middle = (2 * end - number) * self.num_feedback_ranks // (2 * len(self.seats))
            least = self.num_feedback_ranks - self.num_blocks + block  # or the last ranks would have no loop
            found.append(min(max(middle, least), found[-1] + 1 if found else 0))
        return found

    def block_of(self, rank: int) -> int:
        return self.seats[rank].block

    def replica_of(self, rank: int) -> int:
        return self.seats[rank].replica

    def ranks_of(self, block: int) -> tuple[int, ...]:
        """The ranks of the replicas of ``block``, in their order."""
        return self._ranks[block]

    @cached_property
    def _ranks(self) -> list[tuple[int, ...]]:
        """The ranks of every block."""
        found: list[list[int]] = [[] for _ in range(self.num_blocks)]
        for rank, seat in enumerate(self.seats):
            found[seat.block].append(rank)
        return [tuple(ranks) for ranks in found]

    @property
    def lead_ranks(self) -> tuple[int, ...]:
        """The first replica of every block, which logs, tests and saves for all of them."""
        return tuple(rank for rank, seat in enumerate(self.seats) if seat.replica == 0)

    def is_lead(self, rank: int) -> bool:
        return self.is_feedback(rank) or self.replica_of(rank) == 0

    @property
    def num_parts(self) -> int:
        """The parts of a checkpoint: one a block, and one a feedback rank; in a synchronous engine one a rank."""
        return self.num_blocks + self.num_feedback_ranks

    @property
    def part_ranks(self) -> tuple[int, ...]:
        """The rank of every part of a checkpoint."""
        return (*self.lead_ranks, *self.feedback_ranks)

    @property
    def digest_ranks(self) -> tuple[int, ...]:
        """The ranks with the digests of all weights: the first feedback rank has that of all feedback loops."""
        return (*self.lead_ranks, *self.feedback_ranks[:1])

    def part_of(self, rank: int) -> int:
        """The part of a checkpoint that ``rank`` reads, and writes if it is the first replica of its block."""
        return self.num_blocks + rank - len(self.seats) if self.is_feedback(rank) else self.block_of(rank)

    def shards_of(self, rank: int) -> range:
        """The shards that ``rank`` owns."""
        block, replica = self.seats[rank]
        number = len(self.ranks_of(block))
        return range(replica * self.num_shards // number, (replica + 1) * self.num_shards // number)

    def owner(self, block: int, shard: int) -> int:
        """The rank that owns ``shard`` in ``block``."""
        ranks = self.ranks_of(block)
        return ranks[((shard + 1) * len(ranks) - 1) // self.num_shards]  # the one whose ``shards_of`` has it

    def passes_of(self, rank: int) -> Passes:
        """How a batch goes through the replica of ``rank``."""
        block, replica = self.seats[rank]
        if not self.joins_shards:
            each = tuple(range(shard, shard + 1) for shard in range(self.num_shards))
            return Passes(self.num_shards, each, self.shards_of(rank))
        held = tuple(self.shards_of(other) for other in self.ranks_of(block))
        return Passes(self.num_shards, held, range(replica, replica + 1))

    def role(self, rank: int) -> str:
        """``block 2``, ``block 2 replica 1`` if it has several; ``feedback``, ``feedback 1`` if there are several;
        ``stage 2``, ``stages 0+3`` or ``replica 2`` in a synchronous engine."""
        is_one = self.is_feedback(rank) or len(self.ranks_of(self.block_of(rank))) == 1
        return self.part_role(rank) + ("" if is_one else f" replica {self.replica_of(rank)}")

    def part_role(self, rank: int) -> str:
        """The role of a rank without the number of its replica."""
        if self.is_feedback(rank):
            return "feedback" + (f" {rank - len(self.seats)}" if self.num_feedback_ranks > 1 else "")
        if self.placement in ("loop", "v"):
            return "stages " + "+".join(map(str, self.stages_of(rank)))
        return f"{self.placement} {self.block_of(rank)}"

    @property
    def num_stages(self) -> int:
        return self.num_blocks * len(self.stages_of(0))

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """The stages of a synchronous pipeline that ``rank`` holds, in order."""
        match self.placement:
            case "loop":
                return rank, rank + self.num_blocks
            case "v":
                return rank, 2 * self.num_blocks - 1 - rank
            case _:
                return (rank,)

    def rank_of(self, stage: int) -> int:
        """The rank that holds ``stage``."""
        return next(rank for rank in self.block_ranks if stage in self.stages_of(rank))

    @property
    def tested_ranks(self) -> tuple[int, ...]:
        """The ranks with class scores: every block has a head, but an end-to-end network has scores on one rank."""
        return self.lead_ranks if self.placement == "block" else (self.scoring_rank,)

    @property
    def scoring_rank(self) -> int:
        """The rank of a synchronous engine with the class scores of the network."""
        return 0 if self.placement in ("v", "replica") else self.num_blocks - 1

    def alpha_edge(self, block: int, shard: int = 0) -> Edge | None:
        """The edge on which ``block`` sends the activations of ``shard``; the last block sends none."""
        if block + 1 == self.num_blocks:
            return None
        return Edge("alpha", self.owner(block, shard), self.owner(block + 1, shard))

    def target_edge(self, block: int, shard: int = 0) -> Edge:
        return Edge("target", self.feedback_of(block), self.owner(block, shard))

    def stats_edge(self, block: int, shard: int = 0) -> Edge:
        return Edge("stats", self.owner(block, shard), self.feedback_of(block))

    def edge(self, kind: EdgeKind, block: int, shard: int) -> Edge | None:
        """The edge of ``kind`` that carries ``shard`` from or to ``block``; of alpha, from it."""
        match kind:
            case "alpha":
                return self.alpha_edge(block, shard)
            case "target":
                return self.target_edge(block, shard)
            case "stats":
                return self.stats_edge(block, shard)

    def shards_on(self, edge: Edge) -> range:
        """The shards that travel on ``edge``."""
        held = [self.shards_of(rank) for rank in (edge.src, edge.dst) if not self.is_feedback(rank)]
        return range(max(each.start for each in held), min(each.stop for each in held))

    def edges(self) -> tuple[Edge, ...]:
        """All edges, in the order in which all ranks open them."""
        return tuple(dict.fromkeys(self._edges())) if self.placement == "block" else ()  # or torch carries the messages

    def _edges(self) -> Iterator[Edge]:
        kinds: tuple[EdgeKind, ...] = ("alpha", "target", "stats") if self.num_feedback_ranks else ("alpha",)
        for kind in kinds:
            for block in range(self.num_blocks):
                for shard in range(self.num_shards):
                    if (edge := self.edge(kind, block, shard)) is not None:
                        yield edge

    def check_world_size(self, found: int) -> None:
        """Raises ConfigError unless torchrun started one rank a replica of a block and one for the feedback, or the
        number of ranks of a synchronous engine."""
        if found == self.world_size:
            return
        use = f"use --nproc_per_node={self.world_size}"
        if self.placement != "block":
            each, kind = len(self.stages_of(0)), "replica" if self.placement == "replica" else "stage"
            parts = f"{self.num_stages} {kind}{'s' if self.num_stages > 1 else ''}{', two a rank,' if each > 1 else ''}"
            raise ConfigError(
                f"{parts} need {self.world_size} ranks, but torchrun started {found}; {use}, or --set "
                f"blocks={each * found}"
            )
        blocks = "1 block" if self.num_blocks == 1 else f"{self.num_blocks} blocks"
        feedback = f"{self.num_feedback_ranks} feedback rank{'s' if self.num_feedback_ranks > 1 else ''}"
        need = f"and {feedback} need {self.world_size} ranks, but torchrun started {found}"
        if len(self.seats) > self.num_blocks:
            each, left = divmod(found - self.num_feedback_ranks, self.num_blocks)
            replicas = 0 if left else each
            other = f", or --set replicas={replicas}" if 0 < replicas <= self.num_shards else ""
            held = " + ".join(str(len(self.ranks_of(block))) for block in range(self.num_blocks))
            raise ConfigError(f"{blocks} with {held} replicas {need}; {use} on one node, or as many over all{other}")
        fewer = found - self.num_feedback_ranks
        raise ConfigError(f"{blocks} {need}; {use}" + (f", or --set blocks={fewer}" if fewer > 0 else ""))


def num_feedback_ranks(num_block_ranks: int, num_blocks: int) -> int:
    """How many ranks hold the feedback loops of so many blocks on so many ranks: one for 64 ranks of blocks."""
    return min(-(-num_block_ranks // BLOCKS_OF_A_FEEDBACK_RANK), num_blocks)


def feedback_ranks_among(num_ranks: int, num_blocks: int) -> int:
    """How many of ``num_ranks`` ranks hold feedback loops, if the blocks have all others."""
    return next(found for found in count(1) if num_feedback_ranks(num_ranks - found, num_blocks) <= found)
