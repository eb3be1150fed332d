"""Where the time goes: ports that count their waiting, and a stopwatch round a loop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Generic

from bllpipe.ports import ReceivedMessage, Receiver, Round, Sender, SentMessage


class TimedSender(Generic[SentMessage]):
    """A sender that adds up the seconds spent in it."""

    def __init__(self, port: Sender[SentMessage], edge: str) -> None:
        self._port, self.edge, self.waited = port, edge, 0.0

    def send(self, message: SentMessage) -> None:
        start = time.perf_counter()
        self._port.send(message)
        self.waited += time.perf_counter() - start


class TimedReceiver(Generic[ReceivedMessage]):
    """A receiver that adds up the seconds spent in it."""

    def __init__(self, port: Receiver[ReceivedMessage], edge: str) -> None:
        self._port, self.edge, self.waited = port, edge, 0.0

    def recv(self) -> ReceivedMessage:
        start = time.perf_counter()
        message = self._port.recv()
        self.waited += time.perf_counter() - start
        return message


TimedPort = TimedSender | TimedReceiver  # type: ignore[type-arg]  # of any message


@dataclass
class Stretch:
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
    waited for messages, by edge.
    """

    ports: list[TimedPort]
    steady_from: int
    in_rounds: float = 0.0
    waiting: dict[str, float] = field(default_factory=dict)
    training: Stretch = field(default_factory=Stretch)
    steady: Stretch = field(default_factory=Stretch)
    _lap: Stretch = field(default_factory=Stretch)
    _ended: float | None = None

    def measure(self, entry: Round, start: float, waited_before: dict[str, float]) -> None:
        """Adds one round that began at ``start`` (time.perf_counter) and ends now."""
        if entry.phase != "train":
            self._ended = None
            return
        now = time.perf_counter()
        seconds = now - (start if self._ended is None else self._ended)
        self._ended = now
        self.in_rounds += now - start
        for port in self.ports:
            self.waiting[port.edge] = self.waiting.get(port.edge, 0.0) + port.waited - waited_before[port.edge]
        for stretch in (self.training, self._lap, *([self.steady] if entry.step >= self.steady_from else [])):
            stretch.add(seconds, entry.size)

    def waited(self) -> dict[str, float]:
        """Seconds waited so far on every port, by edge."""
        return {port.edge: port.waited for port in self.ports}

    def lap(self) -> float:
        """Images per second of training since the last lap."""
        lap, self._lap = self._lap, Stretch()
        return lap.rate

    @property
    def computing(self) -> float:
        """Seconds of the actor's training rounds that were not spent waiting for messages."""
        return self.in_rounds - sum(self.waiting.values())
