"""What a block costs, from what its units cost: the sums that a cut is judged by. Imports no torch.

Costs are seconds of a batch or numbers of operations; the sums are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from bllpipe.plan.partition import Cost


@dataclass(frozen=True)
class UnitCost:
    """One unit and one batch.

    ``backward`` makes the gradients of parameters and of the input, ``backward_without_input`` only the former,
    ``backward_of_input`` only the latter. ``head`` is everything that a block adds which ends with this unit: local
    head and loss there and back, the head's update, the statistics; for the last unit the network's own loss.
    """

    forward: float
    backward: float
    backward_without_input: float
    backward_of_input: float
    update: float
    head: float
    parameters: int
    output_bytes: int = 0
    memory_bytes: int = 0
    head_memory_bytes: int = 0


# Of a cost, what is computed for every part of a batch anew.
COMPUTED = ("forward", "backward", "backward_without_input", "backward_of_input", "head")


def part_size(batch_size: int, number: int) -> int:
    """Images of the largest of so many parts of a batch."""
    return -(-batch_size // number)


def in_parts(units: Sequence[UnitCost], part: Sequence[UnitCost], number: int) -> list[UnitCost]:
    """What ``units`` take for their batch in ``number`` parts, each of which takes ``part``; all that is not computed a
    part stays that of the batch."""
    return [
        replace(whole, **{name: number * getattr(piece, name) for name in COMPUTED})
        for whole, piece in zip(units, part, strict=True)
    ]


@dataclass(frozen=True)
class Link:
    """What joins two devices, each way. Unless it ``overlaps``, as a processor's does not, the devices themselves carry
    the messages and compute nothing meanwhile."""

    bytes_per_second: float = inf
    latency: float = 0.0
    overlaps: bool = True

    def seconds(self, num_bytes: float) -> float:
        """How long a message is on its way."""
        return self.latency + num_bytes / self.bytes_per_second


def local_seconds(units: Sequence[UnitCost], first: int, end: int) -> float:
    """A block that learns from its own loss: its first unit needs no gradient of its input."""
    block = units[first:end]
    spared = block[0].backward - block[0].backward_without_input
    return sum(unit.forward + unit.backward + unit.update for unit in block) + block[-1].head - spared


@dataclass(frozen=True)
class StageSeconds:
    """A stage of a synchronous pipeline and a whole batch. ``backward`` is all of the way back, of which
    ``backward_of_input`` is what the stage before waits for."""

    forward: float
    backward: float
    backward_of_input: float
    update: float


def stage_seconds(units: Sequence[UnitCost], first: int, end: int) -> StageSeconds:
    """A stage has no head; the last one has the loss, and the first one's images need no gradient."""
    stage = units[first:end]
    loss = units[-1].head if end == len(units) else 0.0
    backward = sum(unit.backward for unit in stage) + loss
    of_input = sum(unit.backward_of_input for unit in stage) + loss
    if first == 0:
        spared = stage[0].backward - stage[0].backward_without_input
        backward, of_input = backward - spared, max(of_input - spared, loss)
    return StageSeconds(sum(unit.forward for unit in stage), backward, of_input, sum(unit.update for unit in stage))


def local_cost(units: Sequence[UnitCost], link: Link, memory_limit: float = inf) -> Cost:
    """What a step of block-local learning takes of a block's device and of its links."""

    def cost(first: int, end: int) -> float:
        if _is_impossible(units, first, end, memory_limit, heads=True):
            return inf
        return _with_messages(units, first, end, link, local_seconds(units, first, end))

    return cost


def stage_cost(units: Sequence[UnitCost], link: Link, memory_limit: float = inf) -> Cost:
    """The same for a stage of a synchronous pipeline; as many bytes travel back as forth, on another lane."""

    def cost(first: int, end: int) -> float:
        if _is_impossible(units, first, end, memory_limit, heads=False):
            return inf
        seconds = stage_seconds(units, first, end)
        return _with_messages(units, first, end, link, seconds.forward + seconds.backward, lanes=2)

    return cost


def memory_bytes(units: Sequence[UnitCost], first: int, end: int, heads: bool = True) -> int:
    """What a block keeps of one batch in flight, with its input and, if ``heads``, its head."""
    received = units[first - 1].output_bytes if first else 0
    head = units[end - 1].head_memory_bytes if heads else 0
    return sum(unit.memory_bytes for unit in units[first:end]) + received + head


def _is_impossible(units: Sequence[UnitCost], first: int, end: int, memory_limit: float, heads: bool) -> bool:
    """A block without parameters cannot learn."""
    nothing_to_learn = not any(unit.parameters for unit in units[first:end])
    return nothing_to_learn or memory_bytes(units, first, end, heads) > memory_limit


def _with_messages(
    units: Sequence[UnitCost], first: int, end: int, link: Link, computing: float, lanes: int = 1
) -> float:
    receive = link.seconds(units[first - 1].output_bytes) if first else 0.0
    send = link.seconds(units[end - 1].output_bytes) if end < len(units) else 0.0
    return max(computing, receive, send) if link.overlaps else computing + lanes * (receive + send)
