"""Graphs of several streams on a CPU: what was recorded is done again, by the streams it was recorded on, in the order
that the graph itself knows of.

It is as strict as a GPU is: a stream takes part once it waits for an event of the recording; an event from outside
cannot be waited for inside, nor one from inside outside; and what a stream does must be joined to where the recording
began. In a replay a stream of the graph knows nothing of what the stream of that name has done outside: only the start
of the graph is behind something, and only its end is waited for. So a wait that is missing around a graph is found as
well as one that is missing in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.tape import ASKS_THE_DEVICE, carry_out_again
from tests.support.watched_streams import Clock, WatchedEvent, WatchedStream, WatchedStreams

Result = TypeVar("Result")


class StreamTape(TorchDispatchMode):
    """What torch did while it was entered, on which stream, and what streams waited for."""

    def __init__(self, streams: WatchedStreams, name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._streams, self._name = streams, name
        self._actions: list[Callable[[], None]] = []
        self.origin = WatchedStream(streams, name)
        self._of_graph = {self.origin: self.origin}  # by the stream that a program knows, and by themselves
        self.num_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        assert func._schema.name not in ASKS_THE_DEVICE, f"{func._schema.name} cannot be captured"
        results = func(*args, **(kwargs or {}))
        self._actions.append(partial(self._again, self._streams.now, (func, args, kwargs or {}, results)))
        self.num_operations += 1
        return results

    def working(self, stream: WatchedStream) -> WatchedStream:
        return self._known(stream)

    def mark(self, stream: WatchedStream) -> WatchedEvent:
        known, event = self._known(stream), WatchedEvent({}, of_graph=self)

        def reach() -> None:
            event.clock = dict(known.clock)

        self._do(reach)
        return event

    def wait(self, stream: WatchedStream, event: WatchedEvent) -> None:
        assert event.of_graph is self, f"{stream.name} waits inside of a graph for an event from outside"
        if stream not in self._of_graph:
            part = WatchedStream(self._streams, f"{stream.name} in {self._name}")
            self._of_graph |= {stream: part, part: part}
        known = self._known(stream)
        self._do(lambda: known.follow(event.clock))

    def begin(self, behind: Clock) -> None:
        """The graph is launched: only its start is behind anything."""
        for stream in self._of_graph.values():
            stream.clock = {stream.name: stream.clock.get(stream.name, 0)}
        self.origin.follow(behind)

    def replay(self) -> None:
        for action in self._actions:
            action()

    def check_joined(self) -> None:
        """A GPU does not end a recording before that."""
        for stream in self._of_graph.values():
            joined = self.origin.clock.get(stream.name, 0) >= stream.clock.get(stream.name, 0)
            assert joined, f"{stream.name} is not joined to where the recording began"

    def _known(self, stream: WatchedStream) -> WatchedStream:
        assert stream in self._of_graph, f"{stream.name} works beside the recording"
        return self._of_graph[stream]

    def _do(self, action: Callable[[], None]) -> None:
        action()
        self._actions.append(action)

    def _again(self, stream: WatchedStream, call: tuple[Any, Sequence[Any], dict[str, Any], Any]) -> None:
        before, self._streams.now = self._streams.now, stream
        carry_out_again(*call)
        self._streams.now = before


class WatchedGraphs:
    """Takes the place of CudaGraphs; counts its launches."""

    def __init__(self, streams: WatchedStreams) -> None:
        self._streams = streams
        self.tapes: list[StreamTape] = []
        self.launches: list[StreamTape] = []

    def record(self, compute: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        tape, streams = StreamTape(self._streams, f"graph {len(self.tapes)}"), self._streams
        tape.begin(streams.now.clock)
        before, streams.now, streams.recording = streams.now, tape.origin, tape
        try:
            with tape:
                result = compute()
        finally:
            streams.now, streams.recording = before, None
        tape.check_joined()
        self.tapes.append(tape)
        return partial(self._launch, tape), result

    @torch.no_grad()
    def _launch(self, tape: StreamTape) -> None:
        """The first time it has been done already, behind the same clock: a CPU cannot record without doing."""
        if tape in self.launches:
            tape.begin(self._streams.now.clock)
            tape.replay()
        self._streams.now.follow(tape.origin.clock)
        self.launches.append(tape)
