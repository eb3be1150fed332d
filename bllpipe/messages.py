"""The messages of the pipeline, and the protocols through which loops send and receive them.

Shapes: B images, C channels (means), H x W positions, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Phase = Literal["train", "evaluate", "score", "save", "end"]


@dataclass(frozen=True)
class Round:
    """One entry of the run schedule that all ranks follow; it also identifies its messages.

    ``train``: one mini-batch, number ``batch`` of ``epoch``; ``step`` training steps came before it.
    ``evaluate``: one test batch, number ``batch``; the last one may be smaller.
    ``score``: the evaluation after ``step`` training steps is complete.
    ``save``: write the state after ``step`` training steps; ``tested`` unless a stop came before its evaluation.
    ``end``: the same place in a run without checkpoints: no message may be in flight.
    ``shard``: in messages, the number of the part of the batch that they are about, which has ``size`` images.
    """

    phase: Phase
    step: int
    epoch: int = 0
    batch: int = 0
    size: int = 0
    tested: bool = True
    shard: int = 0

    def shards(self, number: int) -> list[Round]:
        """The rounds of the messages about ``number`` equal parts of the batch. The last part of a test batch may be
        smaller, and a small one has fewer parts."""
        if number == 1:
            return [self]
        size = -(-self.size // number)
        firsts = range(0, self.size, size)
        return [replace(self, size=min(size, self.size - first), shard=shard) for shard, first in enumerate(firsts)]

    @property
    def has_messages(self) -> bool:
        return self.phase in ("train", "evaluate")

    def __str__(self) -> str:
        of_shard = f", shard {self.shard}" if self.shard else ""
        when = f"step {self.step}" if self.phase == "train" else f"{self.phase} {self.batch} after step {self.step}"
        return when + of_shard


@dataclass(frozen=True)
class Alpha:
    """Activations of a block (or images): the parameters of its forward message, [B, C, H, W] or [B, K].

    votes_BK: in tests with ``evaluate.ensemble``, the class probabilities of all heads so far, summed; else None.
    """

    round: Round
    alpha_BCHW: Tensor
    votes_BK: Tensor | None = None


@dataclass(frozen=True)
class Target:
    """The target of a block: label_B int64, beta_BC the feedback message, and known_B, 1.0 where beta exists and 0.0
    for a class without statistics yet."""

    round: Round
    beta_BC: Tensor
    known_B: Tensor
    label_B: Tensor


@dataclass(frozen=True)
class Stats:
    """Sufficient statistics of one batch for the feedback: sums of the channel means and counts per class."""

    round: Round
    sums_KC: Tensor
    counts_K: Tensor


Message = Alpha | Target | Stats
SentMessage = TypeVar("SentMessage", bound=Message, contravariant=True)
ShardedMessage = TypeVar("ShardedMessage", "Alpha", "Target")
ReceivedMessage = TypeVar("ReceivedMessage", bound=Message, covariant=True)


class Sender(Protocol[SentMessage]):
    """The near end of an outgoing edge."""

    def send(self, message: SentMessage) -> None:
        """Sends the message; waits only while too many sends are in flight. The tensors must not change afterwards."""


class Receiver(Protocol[ReceivedMessage]):
    """The near end of an incoming edge."""

    def recv(self) -> ReceivedMessage:
        """The next message of the run schedule. Its tensors stay valid until the next ``recv`` on this port."""


class Store(Protocol):
    """A small key-value store shared by all ranks (torch.distributed's stores satisfy it).

    Ranks exchange shapes, progress and results through it, but no activations.
    """

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes:
        """Waits for the key to appear."""

    def add(self, key: str, amount: int) -> int:
        """Atomically adds, and returns the new value; a new key starts at 0."""

    def check(self, keys: list[str]) -> bool:
        """Whether all the keys exist, without waiting."""

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Writes ``desired`` if the key is absent (with ``expected`` empty); returns the value after the call."""


def messages(rounds: Iterator[Round]) -> Iterator[Round]:
    """The rounds with activations and targets."""
    return (entry for entry in rounds if entry.has_messages)


def split(message: ShardedMessage, number: int) -> list[ShardedMessage]:
    """The messages about ``number`` shards of the batch that ``message`` is about; their tensors are views."""
    rounds = message.round.shards(number)
    names = [
        field.name for field in fields(message) if getattr(message, field.name) is not None and field.name != "round"
    ]
    parts = [getattr(message, name).split([each.size for each in rounds]) for name in names]
    return [
        replace(message, round=each, **dict(zip(names, tensors, strict=True)))
        for each, *tensors in zip(rounds, *parts, strict=True)
    ]
