"""Where the time goes: ports that count their waiting and their bytes, and a stopwatch round a loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol

from bllpipe.messages import ReceivedMessage, Receiver, Round, Sender, SentMessage


@dataclass
class Meter:
    """What passed one place since the round began: seconds waited there, and bytes sent. The last wait ``began`` and
    ``ended`` at these times (time.perf_counter); one that lasts has begun later than the one before it ended."""

    edge: str
    waited: float = 0.0
    sent: int = 0
    began: float = 0.0
    ended: float = 0.0

    def reset(self) -> None:
        self.waited, self.sent = 0.0, 0

    def begin(self) -> None:
        """A wait begins now."""
        self.began = time.perf_counter()

    def end(self) -> None:
        """It ends now."""
        self.ended = time.perf_counter()
        self.waited += self.ended - self.began

    @property
    def is_waiting(self) -> bool:
        return self.began > self.ended


class Metered(Protocol):
    """Whatever an actor may wait in."""

    meter: Meter


class TimedSender(Generic[SentMessage]):
    """A sender that adds up the seconds spent in it and, as ``num_bytes`` knows them of the images and the phase of a
    round, the bytes of its messages."""

    def __init__(self, port: Sender[SentMessage], edge: str, num_bytes: Callable[[int, str], int]) -> None:
        self._port, self.meter, self._num_bytes = port, Meter(edge), num_bytes

    @property
    def queued(self) -> int | None:
        """Messages that have not left yet; None where the wire does not know."""
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
        """Messages that have come and nobody has taken yet; None where the wire does not know."""
        return getattr(self._port, "queued", None)

    def recv(self) -> ReceivedMessage:
        self.meter.begin()
        message = self._port.recv()
        self.meter.end()
        return message


@dataclass
class Interval:
    """Seconds on the clock, and the images that were trained on in them."""

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
    """Where the time of one actor goes.

    ``training`` runs from one training round to the next, whoever else has a turn in between, but stands still for
    tests and checkpoints. ``steady`` is the same without the first ``steady_from`` steps, which fill the pipeline and
    warm caches. ``in_rounds`` are the seconds in the actor's own training rounds, ``waiting`` those of them that it
    waited for messages, and ``sent`` the bytes that it sent in them, both by edge. ``in_tests`` are the seconds in the
    rounds of its tests.
    """

    ports: Sequence[Metered]
    steady_from: int
    in_rounds: float = 0.0
    in_tests: float = 0.0
    waiting: dict[str, float] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    training: Interval = field(default_factory=Interval)
    steady: Interval = field(default_factory=Interval)
    _lap: Interval = field(default_factory=Interval)
    _began: float = 0.0
    _ended: float | None = None

    def begin(self) -> None:
        """A round begins now."""
        for port in self.ports:
            port.meter.reset()
        self._began = time.perf_counter()

    def end(self, entry: Round) -> None:
        """The round ``entry`` ends now; only those of the training count."""
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
        self._count(seconds, entry)

    def _count(self, seconds: float, entry: Round) -> None:
        self.training.add(seconds, entry.size)
        self._lap.add(seconds, entry.size)
        if entry.step >= self.steady_from:
            self.steady.add(seconds, entry.size)

    def take_interval(self) -> float:
        """Images per second of training since the last lap."""
        lap, self._lap = self._lap, Interval()
        return lap.rate

    @property
    def computing(self) -> float:
        """Seconds of the actor's training rounds that were not spent waiting for messages."""
        return self.in_rounds - sum(self.waiting.values())
