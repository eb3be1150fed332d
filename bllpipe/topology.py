"""Who sits on which rank, and which directed edges exist: pure data.

  rank 0  --alpha-->  rank 1  --alpha-->  rank 2  --alpha-->  rank 3
   ^ |                 ^ |                 ^ |                 ^ |
target stats        target stats        target stats        target stats
   | v                 | v                 | v                 | v
   +------------------- rank 4: one feedback lane a block -----+
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bllpipe.errors import ConfigError

EdgeKind = Literal["alpha", "target", "stats"]


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
    """``num_blocks`` forward ranks in a chain, and one feedback rank behind them unless ``has_feedback`` is false."""

    num_blocks: int
    has_feedback: bool = True

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
        """``block 2`` or ``feedback``."""
        return "feedback" if rank == self.feedback_rank else f"block {rank}"

    def alpha_edge(self, block: int) -> Edge | None:
        """The edge on which ``block`` sends its activations; the last block sends none."""
        return Edge("alpha", block, block + 1) if block + 1 < self.num_blocks else None

    def target_edge(self, block: int) -> Edge:
        return Edge("target", self.feedback_rank, block)

    def stats_edge(self, block: int) -> Edge:
        return Edge("stats", block, self.feedback_rank)

    def edges(self) -> tuple[Edge, ...]:
        """Every edge, in the one order in which all ranks open them."""
        alphas = [edge for edge in map(self.alpha_edge, self.block_ranks) if edge is not None]
        if not self.has_feedback:
            return tuple(alphas)
        targets, stats = map(self.target_edge, self.block_ranks), map(self.stats_edge, self.block_ranks)
        return (*alphas, *targets, *stats)

    def check_world_size(self, found: int) -> None:
        """Raises ConfigError unless torchrun started exactly one rank a block and one for the feedback."""
        if found != self.world_size:
            blocks = "1 block" if self.num_blocks == 1 else f"{self.num_blocks} blocks"
            raise ConfigError(
                f"{blocks} and 1 feedback rank need {self.world_size} ranks, but torchrun started {found}; "
                f"use --nproc_per_node={self.world_size}" + (f", or --set blocks={found - 1}" if found > 1 else "")
            )
