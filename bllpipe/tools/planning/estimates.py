"""The estimates of a run before it starts: what each rank holds, and what it sends."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a message, with the number of images in front of ``shape``."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class EdgeEstimate:
    """The messages from rank ``src`` to rank ``dst`` in a training step: ``num_messages`` of ``message_bytes`` each,
    with header and trailer if there are any. ``kind`` is that of an Edge, or ``gradient``. ``ensemble_bytes``: the
    additional bytes of a test batch's message with ``evaluate.ensemble``."""

    kind: str
    src: int
    dst: int
    tensors: tuple[TensorSpec, ...]
    message_bytes: int
    num_messages: int
    step_bytes: int
    ensemble_bytes: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.src}->{self.dst}"


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank, an estimate. ``activations``: what its backward passes keep, with their inputs, at their peak;
    ``messages``: the buffers of its edges."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    messages: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.messages


@dataclass(frozen=True)
class RankEstimate:
    """``parameters`` as in summary.json: all numbers that training changes, statistics of normalisations with them.

    Of them ``head_parameters`` are those of the local head and of its loss. ``operations`` are those of a forward pass
    of one image through block, head and loss (a multiplication and an addition are two), ``head_operations`` those of
    head and loss alone.
    """

    rank: int
    role: str
    parameters: int
    memory: Memory
    head_parameters: int = 0
    operations: int = 0
    head_operations: int = 0


@dataclass(frozen=True)
class PlaceEstimate:
    """A place at which a traced network can be cut: after ``unit``, where one tensor of ``shape`` (without the batch)
    is alive. ``parameters`` are those of the unit."""

    unit: str
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Estimates:
    """All ranks and edges of a run of ``steps`` steps, each of a batch; the ``places`` of a network that is traced."""

    steps: int
    steps_per_epoch: int
    ranks: tuple[RankEstimate, ...]
    edges: tuple[EdgeEstimate, ...]
    places: tuple[PlaceEstimate, ...] = ()

    def sent(self, rank: int) -> int:
        """Bytes that ``rank`` sends in a training step."""
        return sum(edge.step_bytes for edge in self.edges if edge.src == rank)

    def received(self, rank: int) -> int:
        """Bytes that ``rank`` receives in a training step."""
        return sum(edge.step_bytes for edge in self.edges if edge.dst == rank)

    def to_json(self) -> dict[str, Any]:
        """All fields, and the sums."""
        ranks = [
            {
                **asdict(each),
                "memory": {**asdict(each.memory), "total": each.memory.total},
                "sent_bytes": self.sent(each.rank),
                "received_bytes": self.received(each.rank),
            }
            for each in self.ranks
        ]
        return {**asdict(self), "ranks": ranks}
