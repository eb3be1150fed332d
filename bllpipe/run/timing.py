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
class Stopwatch:
    """Seconds of one actor: computing and waiting in training rounds, and the rate since ``steady_from`` steps.

    The first steps fill the pipeline and warm caches: the rate leaves them out.
    """

    ports: list[TimedPort]
    steady_from: int
    rounds_seconds: float = 0.0
    waiting: dict[str, float] = field(default_factory=dict)
    steady_seconds: float = 0.0
    steady_images: int = 0
    _lap_seconds: float = 0.0
    _lap_images: int = 0
    _began: float | None = None
    _ended: float = 0.0
    _between: float = 0.0
    _since_training: float = 0.0

    def measure(self, entry: Round, start: float, waited_before: dict[str, float]) -> None:
        """Adds one round that began at ``start`` (time.perf_counter) and ends now."""
        now = time.perf_counter()
        if entry.phase != "train":
            self._since_training += now - start
            return
        self._began = start if self._began is None else self._began
        self._between, self._since_training = self._between + self._since_training, 0.0
        self._ended = now
        self.rounds_seconds += now - start
        for port in self.ports:
            spent = port.waited - waited_before[port.edge]
            self.waiting[port.edge] = self.waiting.get(port.edge, 0.0) + spent
        self._lap_seconds, self._lap_images = self._lap_seconds + now - start, self._lap_images + entry.size
        if entry.step >= self.steady_from:
            self.steady_seconds += now - start
            self.steady_images += entry.size

    def lap(self) -> float:
        """Images per second of training since the last lap."""
        rate = self._lap_images / self._lap_seconds if self._lap_seconds else 0.0
        self._lap_seconds, self._lap_images = 0.0, 0
        return rate

    def waited(self) -> dict[str, float]:
        """Seconds waited so far on every port, by edge."""
        return {port.edge: port.waited for port in self.ports}

    @property
    def elapsed(self) -> float:
        """Seconds from the first to the last training round, without evaluations and checkpoints between them."""
        return self._ended - self._began - self._between if self._began is not None and self._ended else 0.0

    @property
    def computing(self) -> float:
        """Seconds of training rounds that were not spent waiting for messages."""
        return self.rounds_seconds - sum(self.waiting.values())

    @property
    def images_per_second(self) -> float:
        """The steady rate: without the first steps."""
        return self.steady_images / self.steady_seconds if self.steady_seconds else 0.0
