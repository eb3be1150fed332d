"""Streams and events: a device does what is queued on one stream in order, and what is queued on several side by side.

A CPU has no queues: whatever it is told is done when the call returns, so its streams have nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch


class Event(Protocol):
    """A mark in a stream."""

    def synchronize(self) -> None:
        """Waits, on the host, until the device has come to the mark."""


class Stream(Protocol):
    """One queue of a device."""

    def at_work(self) -> AbstractContextManager[Any]:
        """Whatever this thread asks for inside is queued here."""

    def record(self) -> Event:
        """A mark behind everything that is queued here so far."""

    def wait(self, event: Event) -> None:
        """What is queued here from now on begins behind ``event``; the host does not wait."""


class Streams(Protocol):
    """The queues of one device."""

    def open(self, name: str) -> Stream:
        """A new queue; ``name`` is for whoever looks at it."""

    def current(self) -> Stream:
        """The queue that this thread uses now."""

    def synchronize(self) -> None:
        """Waits, on the host, until the device has done everything."""


OpenStreams = Callable[[torch.device], Streams]


class _Done:
    """The mark of a CPU, which has done everything already."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


DONE = _Done()


class HostStreams:
    """A CPU: one stream, and that does at once what it is told."""

    def open(self, name: str) -> HostStreams:
        return self

    def current(self) -> HostStreams:
        return self

    def at_work(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self) -> Event:
        return DONE

    def wait(self, event: Event) -> None:
        """Everything before has been done."""

    def synchronize(self) -> None:
        """So has this."""


class CudaStream:
    """A stream of a GPU."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def at_work(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream)

    def record(self) -> Event:
        mark: Event = self._stream.record_event(torch.cuda.Event(blocking=True))  # whoever waits sleeps
        return mark

    def wait(self, event: Event) -> None:
        assert isinstance(event, torch.cuda.Event), "a GPU's streams wait for its own events"
        self._stream.wait_event(event)


class CudaStreams:
    """The streams of a GPU. Those that are opened are of high ``priority`` if it is negative."""

    def __init__(self, device: torch.device, priority: int = 0) -> None:
        self._device, self._priority = device, priority

    def open(self, name: str) -> CudaStream:
        return CudaStream(torch.cuda.Stream(self._device, priority=self._priority))

    def current(self) -> CudaStream:
        return CudaStream(torch.cuda.current_stream(self._device))

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)


def streams_on(device: torch.device) -> Streams:
    """The streams of ``device``."""
    return CudaStreams(device) if device.type == "cuda" else HostStreams()
