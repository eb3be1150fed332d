"""Playing a schedule: when each operation of each rank begins and ends, if all of them take as long as they should.
Imports no torch.

  F  forward of a microbatch                      needs F of the stage before
  B  backward (all of it, or that of the input)   needs F of its own stage and B of the stage behind
  W  backward of the weights, where B leaves it   needs B of its own stage
  L  a local step: backward, head and update      needs F of its own stage and nobody else
  U  update                                       needs whatever its rank did before it

A rank does its operations in the order given and begins each as soon as it can. A message between two ranks travels
while both compute; messages of one direction between two stages follow one another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["F", "B", "W", "L", "U"]


class Op(NamedTuple):
    """One operation of a schedule; microbatches count on from step to step."""

    stage: int
    microbatch: int
    kind: Kind


Order = Sequence[Op]


@dataclass(frozen=True)
class Timeline:
    """When the last rank is done, when each is, and the share of the makespan that each computes."""

    makespan: float
    ends: tuple[float, ...]
    busy: tuple[float, ...]


def simulate(
    seconds: Sequence[Mapping[str, float]], orders: Sequence[Order], messages: Sequence[float] = ()
) -> Timeline:
    """The timeline of a schedule.

    Args:
        seconds: how long each kind of operation takes, a mapping a stage.
        orders: what each rank does, in its order.
        messages: seconds of a message between stage k and k + 1, either way; nothing if left out.

    Raises ValueError when ranks wait for each other, or for an operation that nobody does.
    """
    play = _Play(seconds, orders, messages)
    while any(play.advance(rank) for rank in range(len(orders))):
        pass
    stuck = [f"rank {rank} at {order[play.position[rank]]}" for rank, order in enumerate(orders) if play.is_left(rank)]
    if stuck:
        raise ValueError(f"the schedule cannot go on: {'; '.join(stuck)}")
    makespan = max(play.clock, default=0.0)
    worked = [sum(seconds[op.stage][op.kind] for op in order) for order in orders]
    return Timeline(makespan, tuple(play.clock), tuple(work / makespan if makespan else 0.0 for work in worked))


class _Play:
    """How far each rank has come, and what has arrived where."""

    def __init__(
        self, seconds: Sequence[Mapping[str, float]], orders: Sequence[Order], messages: Sequence[float]
    ) -> None:
        self._seconds, self._orders = seconds, orders
        self._messages = messages or [0.0] * len(seconds)
        self._rank_of = {op.stage: rank for rank, order in enumerate(orders) for op in order}
        self.clock, self.position = [0.0] * len(orders), [0] * len(orders)
        self._ready: dict[tuple[Op, int], float] = {}  # when a stage has the result of an operation
        self._link_free: dict[tuple[int, int], float] = {}

    def is_left(self, rank: int) -> bool:
        return self.position[rank] < len(self._orders[rank])

    def advance(self, rank: int) -> bool:
        """Carries out what ``rank`` can do now; whether that was anything."""
        start = self.position[rank]
        while self.is_left(rank):
            op = self._orders[rank][self.position[rank]]
            needed = [self._ready.get((other, op.stage)) for other in self._needs(op)]
            if None in needed:
                break
            begin = max([self.clock[rank], *(time for time in needed if time is not None)])
            self.clock[rank] = begin + self._seconds[op.stage][op.kind]
            self._tell(op, self.clock[rank])
            self.position[rank] += 1
        return self.position[rank] > start

    def _needs(self, op: Op) -> Iterator[Op]:
        stage, microbatch, kind = op
        if kind == "F" and stage > 0:
            yield Op(stage - 1, microbatch, "F")
        if kind in ("B", "L"):
            yield Op(stage, microbatch, "F")
        if kind == "B" and stage + 1 < len(self._seconds):
            yield Op(stage + 1, microbatch, "B")
        if kind == "W":
            yield Op(stage, microbatch, "B")

    def _tell(self, op: Op, now: float) -> None:
        """Its own stage has the result at once, the neighbour that it is for when the message is there."""
        self._ready[op, op.stage] = now
        neighbour = {"F": op.stage + 1, "B": op.stage - 1}.get(op.kind, -1)
        if not 0 <= neighbour < len(self._seconds):
            return
        if self._rank_of.get(neighbour) != self._rank_of[op.stage]:
            link = (op.stage, neighbour)
            now = max(now, self._link_free.get(link, 0.0)) + self._messages[min(link)]
            self._link_free[link] = now
        self._ready[op, neighbour] = now
