"""The roles of ranks, and the directed edges between them: pure data.

  rank 0  --alpha-->  rank 1  --alpha-->  rank 2  --alpha-->  rank 3
   ^ |                 ^ |                 ^ |                 ^ |
target stats        target stats        target stats        target stats
   | v                 | v                 | v                 | v
   +------------------- rank 4: one feedback loop a block -----+
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bllpipe.errors import ConfigError

EdgeKind = Literal["alpha", "target", "stats"]
# The parts that ranks of a job hold: a block each, which learns locally; in a synchronous pipeline with P ranks
# stage r, or stages r and r + P (a loop), or r and 2P - 1 - r (a V); or a replica of the whole network each.
Placement = Literal["block", "stage", "loop", "v", "replica"]


@dataclass(frozen=True)
class Edge:
    """One directed edge. One edge is one FIFO: nothing else travels on it."""

    kind: EdgeKind
    src: int
    dst: int

    def __str__(self) -> str:
        return f"{self.kind} {self.src}->{self.dst}"


@dataclass(frozen=True)
class Topology:
    """``num_blocks`` forward ranks in a chain, and one feedback rank after them unless ``has_feedback`` is false. A
    batch is ``num_shards`` messages on every edge."""

    num_blocks: int
    has_feedback: bool = True
    placement: Placement = "block"
    num_shards: int = 1

    @property
    def world_size(self) -> int:
        return self.num_blocks + self.has_feedback

    @property
    def feedback_rank(self) -> int:
        return self.num_blocks

    @property
    def block_ranks(self) -> range:
        return range(self.num_blocks)

    def role(self, rank: int) -> str:
        """``block 2`` or ``feedback``; ``stage 2``, ``stages 0+3`` or ``replica 2`` in a synchronous engine."""
        if rank == self.feedback_rank:
            return "feedback"
        if self.placement in ("loop", "v"):
            return "stages " + "+".join(map(str, self.stages_of(rank)))
        return f"{self.placement} {rank}"

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
        return tuple(self.block_ranks) if self.placement == "block" else (self.scoring_rank,)

    @property
    def scoring_rank(self) -> int:
        """The rank of a synchronous engine with the class scores of the network."""
        return 0 if self.placement in ("v", "replica") else self.num_blocks - 1

    def alpha_edge(self, block: int) -> Edge | None:
        """The edge on which ``block`` sends its activations; the last block sends none."""
        return Edge("alpha", block, block + 1) if block + 1 < self.num_blocks else None

    def target_edge(self, block: int) -> Edge:
        return Edge("target", self.feedback_rank, block)

    def stats_edge(self, block: int) -> Edge:
        return Edge("stats", block, self.feedback_rank)

    def edges(self) -> tuple[Edge, ...]:
        """All edges, in the order in which all ranks open them."""
        alphas = [edge for edge in map(self.alpha_edge, self.block_ranks) if edge is not None]
        if self.placement != "block":
            return ()  # torch carries the messages
        if not self.has_feedback:
            return tuple(alphas)
        targets, stats = map(self.target_edge, self.block_ranks), map(self.stats_edge, self.block_ranks)
        return (*alphas, *targets, *stats)

    def check_world_size(self, found: int) -> None:
        """Raises ConfigError unless torchrun started one rank a block and one for the feedback, or the number of ranks
        of a synchronous engine."""
        if found != self.world_size and self.placement != "block":
            each, kind = len(self.stages_of(0)), "replica" if self.placement == "replica" else "stage"
            parts = f"{self.num_stages} {kind}{'s' if self.num_stages > 1 else ''}{', two a rank,' if each > 1 else ''}"
            raise ConfigError(
                f"{parts} need {self.world_size} ranks, but torchrun started {found}; "
                f"use --nproc_per_node={self.world_size}, or --set blocks={each * found}"
            )
        if found != self.world_size:
            blocks = "1 block" if self.num_blocks == 1 else f"{self.num_blocks} blocks"
            raise ConfigError(
                f"{blocks} and 1 feedback rank need {self.world_size} ranks, but torchrun started {found}; "
                f"use --nproc_per_node={self.world_size}" + (f", or --set blocks={found - 1}" if found > 1 else "")
            )
