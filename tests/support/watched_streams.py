"""Streams of a CPU that know what a GPU would be allowed to do at the same time.

Everything is done at once and in order, so a missing wait changes no bits here. But every stream has a vector clock,
events carry it from one to another, and every operation of torch is seen: two that touch the same memory, one of them
writing, and of which neither has to wait for the other, are a race.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Clock = dict[str, int]  # by stream: how many of its operations come before


@dataclass
class WatchedEvent:
    """A mark; one ``of_graph`` is a mark in a recording, and nowhere else."""

    clock: Clock
    of_graph: object = None

    def synchronize(self) -> None:
        """Everything has been done already."""


class WatchedStream:
    def __init__(self, owner: WatchedStreams, name: str) -> None:
        self._owner, self.name = owner, name
        self.clock: Clock = {}

    @contextmanager
    def at_work(self) -> Iterator[None]:
        recording = self._owner.recording
        before, self._owner.now = self._owner.now, self if recording is None else recording.working(self)
        try:
            yield
        finally:
            self._owner.now = before

    def record(self) -> WatchedEvent:
        recording = self._owner.recording
        return WatchedEvent(dict(self.clock)) if recording is None else recording.mark(self)

    def wait(self, event: Any) -> None:
        if self._owner.recording is not None:
            return self._owner.recording.wait(self, event)
        assert event.of_graph is None, f"{self.name} waits for an event of a graph, outside of it"
        self.follow(event.clock)

    def follow(self, clock: Clock) -> None:
        """What is queued here from now on is behind ``clock``."""
        for name, number in clock.items():
            self.clock[name] = max(number, self.clock.get(name, 0))


class Recording(Protocol):
    """Where what streams are told goes while a graph is recorded (watched_graphs.py)."""

    def working(self, stream: WatchedStream) -> WatchedStream: ...

    def mark(self, stream: WatchedStream) -> WatchedEvent: ...

    def wait(self, stream: WatchedStream, event: WatchedEvent) -> None: ...


class WatchedStreams:
    """The streams of one device, of which the first is the one that programs use by themselves."""

    def __init__(self) -> None:
        self.now = WatchedStream(self, "default")
        self.all = [self.now]
        self.recording: Recording | None = None

    def open(self, name: str) -> WatchedStream:
        self.all.append(WatchedStream(self, name))
        return self.all[-1]

    def current(self) -> WatchedStream:
        return self.now

    def synchronize(self) -> None:
        for stream in self.all:
            self.now.wait(stream.record())


@dataclass
class Memory:
    """One piece of memory, kept so that nothing else ever lies there: who wrote it last, and who has read it since."""

    storage: Any
    born: str
    write: tuple[str, int] = ("default", 0)
    reads: Clock = field(default_factory=dict)
    streams: set[str] = field(default_factory=set)


class RaceDetector(TorchDispatchMode):
    """Finds ``races`` while it is entered."""

    def __init__(self, streams: WatchedStreams) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.streams, self.races = streams, list[str]()
        self.memory: dict[int, Memory] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        stream, schema = self.streams.now, func._schema
        stream.clock[stream.name] = stream.clock.get(stream.name, 0) + 1
        named = [*zip(schema.arguments, args, strict=False), *_by_name(schema, kwargs)]
        for argument, value in named:
            info = argument.alias_info
            if info is None or info.is_write:  # else it becomes a view, of which nothing is read yet
                self._touch(value, schema.name, writes=info is not None and info.is_write)
        results = func(*args, **kwargs)
        if all(result.alias_info is None for result in schema.returns):
            self._touch(results, schema.name, writes=True)
        return results

    def crossed(self) -> list[Memory]:
        """Memory that more than one stream has touched, and that was born on a stream of its own: a GPU would have to
        be told before it may use it for something else."""
        return [each for each in self.memory.values() if each.born != "default" and len(each.streams) > 1]

    def _touch(self, values: Any, operation: str, writes: bool) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor) and tensor.numel():
                self._access(tensor.untyped_storage(), f"{operation} {list(tensor.shape)}", writes)

    def _access(self, storage: Any, what: str, writes: bool) -> None:
        stream = self.streams.now
        memory = self.memory.setdefault(storage.data_ptr(), Memory(storage, stream.name))
        before = [memory.write, *memory.reads.items()] if writes else [memory.write]
        memory.streams.add(stream.name)
        for other, number in before:
            if other != stream.name and number > stream.clock.get(other, 0):
                self.races.append(f"{what} on {stream.name} beside operation {number} of {other}")
        if writes:
            memory.write, memory.reads = (stream.name, stream.clock.get(stream.name, 0)), {}
        else:
            memory.reads[stream.name] = stream.clock.get(stream.name, 0)


def _by_name(schema: Any, kwargs: dict[str, Any]) -> list[tuple[Any, Any]]:
    return [(argument, kwargs[argument.name]) for argument in schema.arguments if argument.name in kwargs]


def on_watched(device: torch.device, streams: WatchedStreams) -> WatchedStreams:
    """As an engine opens streams: those that the test knows."""
    assert device.type == "cpu", "the stand-in for a GPU"
    return streams
