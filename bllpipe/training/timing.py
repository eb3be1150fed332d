"""Where the time of an actor goes: ports that time their waits and count their bytes, and a stopwatch for the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol

from bllpipe.messages import ReceivedMessage, Receiver, Round, Sender, SentMessage
from bllpipe.utils.tree_sum import Sums, TreeSum


@dataclass
class Meter:
    """Seconds waited and bytes sent on one edge since the round began. The last wait ``began`` and ``ended`` at these
    times (time.perf_counter); during a wait ``began`` is later than the end of the wait before."""

    edge: str
    waited: float = 0.0
    sent: int = 0
    began: float = 0.0
    ended: float = 0.0

    def reset(self) -> None:
        self.waited, self.sent = 0.0, 0

    def begin(self) -> None:
        """Starts a wait."""
        self.began = time.perf_counter()

    def end(self) -> None:
        """Ends the wait."""
        self.ended = time.perf_counter()
        self.waited += self.ended - self.began

    @property
    def is_waiting(self) -> bool:
        return self.began > self.ended


class Metered(Protocol):
    """A port in which an actor may wait."""

    meter: Meter


class ReplicaPort(Protocol):
    """This process's end of the sums over the replicas of a block."""

    sent_bytes: int

    def total(self, own: TreeSum) -> Sums: ...


class TimedSender(Generic[SentMessage]):
    """A sender that adds up the seconds spent in it and the bytes of its messages, which ``num_bytes`` computes from
    the number of images and the phase of a round."""

    def __init__(self, port: Sender[SentMessage], edge: str, num_bytes: Callable[[int, str], int]) -> None:
        self._port, self.meter, self._num_bytes = port, Meter(edge), num_bytes

    @property
    def queued(self) -> int | None:
        """The number of messages not sent yet; None if the link does not know."""
        return getattr(self._port, "queued", None)

    def send(self, message: SentMessage) -> None:
        self.meter.begin()
        self._port.send(message)
        self.meter.end()
        self.meter.sent += self._num_bytes(message.round.size, message.round.phase)


class TimedReceiver(Generic[ReceivedMessage]):
    """A receiver that adds up the seconds spent in it."""

    def __init__(self, port: Receiver[ReceivedMessage], edge: str) -> None:
        self._port, self.meter = port, Meter(edge)

    @property
    def queued(self) -> int | None:
        """The number of messages received and not taken yet; None if the link does not know."""
        return getattr(self._port, "queued", None)

    def recv(self) -> ReceivedMessage:
        self.meter.begin()
        message = self._port.recv()
        self.meter.end()
        return message


class TimedSum:
    """The sum over the replicas of a block: adds up the seconds spent in it, and the bytes sent."""

    def __init__(self, port: ReplicaPort, edge: str) -> None:
        self._port, self.meter = port, Meter(edge)

    def total(self, own: TreeSum) -> Sums:
        before = self._port.sent_bytes
        self.meter.begin()
        total = self._port.total(own)
        self.meter.end()
        self.meter.sent += self._port.sent_bytes - before
        return total


@dataclass
class Interval:
    """Seconds of wall-clock time, and the images trained on in them."""

    seconds: float = 0.0
    images: int = 0

    def add(self, seconds: float, images: int) -> None:
        self.seconds, self.images = self.seconds + seconds, self.images + images

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds if self.seconds else 0.0


@dataclass
class Stopwatch:
    """The time of one actor.

    ``training`` runs from one training round to the next, including the turns of other actors in between, but not
    during tests and checkpoints. ``steady`` is the same without the first ``steady_from`` steps, which fill the
    pipeline and warm caches. ``in_rounds`` are the seconds in the actor's own training rounds, ``waiting`` those of
    them that it waited for messages, and ``sent`` the bytes that it sent in them, both by edge. ``in_tests`` are the
    seconds in the rounds of its tests.
    """

    ports: Sequence[Metered]
    steady_from: int
    in_rounds: float = 0.0
    in_tests: float = 0.0
    waiting: dict[str, float] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    training: Interval = field(default_factory=Interval)
    steady: Interval = field(default_factory=Interval)
    _interval: Interval = field(default_factory=Interval)
    _began: float = 0.0
    _ended: float | None = None

    def begin(self) -> None:
        """Starts a round."""
        for port in self.ports:
            port.meter.reset()
        self._began = time.perf_counter()

    def end(self, entry: Round) -> None:
        """Ends the round ``entry``; only training rounds count."""
        now = time.perf_counter()
        if entry.phase != "train":
            self._ended = None
            self.in_tests += 0.0 if entry.phase in ("save", "end") else now - self._began
            return
        seconds = now - (self._began if self._ended is None else self._ended)
        self._ended = now
        self.in_rounds += now - self._began
        for meter in (port.meter for port in self.ports):
            self.waiting[meter.edge] = self.waiting.get(meter.edge, 0.0) + meter.waited
            self.sent[meter.edge] = self.sent.get(meter.edge, 0) + meter.sent
        self.training.add(seconds, entry.size)
        self._interval.add(seconds, entry.size)
        if entry.step >= self.steady_from:
            self.steady.add(seconds, entry.size)

    def take_interval(self) -> float:
        """Images per second of training since the last call."""
        interval, self._interval = self._interval, Interval()
        return interval.rate

    @property
    def computing(self) -> float:
        """Seconds of the actor's training rounds that were not spent waiting for messages."""
        return self.in_rounds - sum(self.waiting.values())
