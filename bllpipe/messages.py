"""The messages of the pipeline, and the protocols through which loops send and receive them.

Shapes: B images, C channels (means), H x W positions, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

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
class Passes:
    """How a batch of ``num_shards`` goes through a block: in passes of consecutive ``shards``; a replica has its
    ``own``."""

    num_shards: int = 1
    shards: tuple[range, ...] = (range(1),)
    own: range = range(1)

    def own_of(self, entry: Round) -> list[tuple[int, Round]]:
        """The number and the round of every own pass of ``entry``. A small test batch has fewer shards."""
        members = self.members(entry)
        return [(number, joined(members[number])) for number in self.own if members[number]]

    def members(self, entry: Round) -> list[list[Round]]:
        """The shards of every pass."""
        shards = entry.shards(self.num_shards)
        return [shards[each.start : each.stop] for each in self.shards]

    def own_images(self, entry: Round) -> slice:
        """The places in the batch of the images of the own passes."""
        members = self.members(entry)
        before, own = members[: self.own.start], members[self.own.start : self.own.stop]
        first = sum(shard.size for shards in before for shard in shards)
        return slice(first, first + sum(shard.size for shards in own for shard in shards))

    def number(self, entry: Round) -> int:
        """The number of passes of ``entry``."""
        return sum(map(bool, self.members(entry)))


ONE_PASS = Passes()  # of a batch of one shard


def joined(shards: Sequence[Round]) -> Round:
    """The round of consecutive shards together."""
    first, *others = shards
    return replace(first, size=sum(shard.size for shard in shards)) if others else first


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


def split(message: ShardedMessage, rounds: Sequence[Round]) -> list[ShardedMessage]:
    """The messages about shards of the images that ``message`` is about; their tensors are views."""
    tensors, sizes = _tensors(message), [each.size for each in rounds]
    parts = [tensor.split(sizes) for tensor in tensors.values()]
    return [
        replace(message, round=each, **dict(zip(tensors, own, strict=True)))
        for each, *own in zip(rounds, *parts, strict=True)
    ]


def join(messages: Sequence[ShardedMessage], entry: Round) -> ShardedMessage:
    """The message of ``entry``, which is about the shards of ``messages`` together."""
    parts = [_tensors(message) for message in messages]
    whole: dict[str, Any] = {name: _cat([part[name] for part in parts]) for name in parts[0]}
    return replace(messages[0], round=entry, **whole)


def copied(message: ShardedMessage) -> ShardedMessage:
    """The message in memory of its own."""
    own: dict[str, Any] = {name: tensor.clone() for name, tensor in _tensors(message).items()}
    return replace(message, **own)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    from torch import cat  # a process that has tensors has imported torch

    return cat(list(parts))


def _tensors(message: Alpha | Target) -> dict[str, Tensor]:
    names = (field.name for field in fields(message) if field.name != "round")
    return {name: tensor for name in names if (tensor := getattr(message, name)) is not None}
