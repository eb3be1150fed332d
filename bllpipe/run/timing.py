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
    """Seconds in training rounds and how much of them was waiting, in all and since ``steady_from`` steps.

    The first steps (``steady_from``) fill the pipeline and warm caches: rates leave them out.
    """

    ports: list[TimedPort]
    steady_from: int
    training: float = 0.0
    waiting: dict[str, float] = field(default_factory=dict)
    steady_seconds: float = 0.0
    steady_images: int = 0

    def measure(self, entry: Round, seconds: float, waited_before: dict[str, float]) -> None:
        """Adds one round that took ``seconds``."""
        if entry.phase != "train":
            return
        self.training += seconds
        for port in self.ports:
            spent = port.waited - waited_before[port.edge]
            self.waiting[port.edge] = self.waiting.get(port.edge, 0.0) + spent
        if entry.step >= self.steady_from:
            self.steady_seconds += seconds
            self.steady_images += entry.size

    def waited(self) -> dict[str, float]:
        """Seconds waited so far on every port, by edge."""
        return {port.edge: port.waited for port in self.ports}

    @property
    def computing(self) -> float:
        """Seconds of training rounds that were not spent waiting for messages."""
        return self.training - sum(self.waiting.values())

    @property
    def images_per_second(self) -> float:
        return self.steady_images / self.steady_seconds if self.steady_seconds else 0.0
