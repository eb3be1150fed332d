"""Where the time goes, by a clock that the test turns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bllpipe.messages import Alpha, Round
from bllpipe.training.timing import Stopwatch, TimedReceiver, TimedSender


class Clock:
    """time.perf_counter under control."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)


class Slow:
    """A port on which every message takes ``seconds``."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def send(self, message: Any) -> None:
        self.clock.now += self.seconds

    def recv(self) -> str:
        self.clock.now += self.seconds
        return "message"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def a_round(watch: Stopwatch, clock: Clock, entry: Round, computing: float, *ports: TimedReceiver[Any]) -> None:
    watch.begin()
    for port in ports:
        port.recv()
    clock.now += computing
    watch.end(entry)


def train(step: int) -> Round:
    return Round("train", step, size=10)


def test_ports_add_up_what_is_spent_in_them(clock: Clock) -> None:
    sender = TimedSender[Any](Slow(clock, 0.25), "alpha 0->1", lambda size, phase: 100 + 8 * size)
    receiver = TimedReceiver[Any](Slow(clock, 0.5), "target 4->0")
    sender.send(Alpha(train(0), torch.empty(10)))
    sender.send(Alpha(train(1), torch.empty(10)))
    assert receiver.recv() == "message"
    assert (sender.meter.waited, receiver.meter.waited) == (0.5, 0.5)
    assert (sender.meter.sent, receiver.meter.sent) == (360, 0)


def test_what_is_sent_in_a_test_does_not_count(clock: Clock) -> None:
    port = TimedSender[Any](Slow(clock, 0.25), "alpha 0->1", lambda size, phase: size)
    watch = Stopwatch([port], steady_from=0)
    for entry in (train(0), Round("evaluate", 1, size=10), train(1)):
        watch.begin()
        port.send(Alpha(entry, torch.empty(10)))
        watch.end(entry)
    assert (watch.sent, watch.waiting) == ({"alpha 0->1": 20}, {"alpha 0->1": 0.5})


def test_the_seconds_of_tests_are_counted_apart_and_those_of_checkpoints_not_here(clock: Clock) -> None:
    watch = Stopwatch([], steady_from=0)
    for entry in (train(0), Round("evaluate", 1, size=10), Round("score", 1), Round("save", 1)):
        a_round(watch, clock, entry, 2.0)
    assert (watch.in_rounds, watch.in_tests) == (2.0, 4.0)


def test_a_port_tells_how_many_messages_lie_there_if_its_wire_knows(clock: Clock) -> None:
    class Counting(Slow):
        queued = 3

    for wire, queued in ((Counting(clock, 0), 3), (Slow(clock, 0), None)):
        assert TimedReceiver[Any](wire, "target 4->0").queued == queued
        assert TimedSender[Any](wire, "alpha 0->1", lambda size, phase: size).queued == queued


def test_computing_is_what_is_not_waiting(clock: Clock) -> None:
    port = TimedReceiver[Any](Slow(clock, 0.5), "target 4->0")
    watch = Stopwatch([port], steady_from=0)
    a_round(watch, clock, train(0), 1.5, port)
    a_round(watch, clock, train(1), 1.5, port)
    assert watch.waiting == {"target 4->0": 1.0}
    assert watch.computing == pytest.approx(3.0)
    assert watch.training.seconds == pytest.approx(4.0)


def test_the_rate_leaves_out_the_first_steps_and_the_tests_but_not_the_turns_of_others(clock: Clock) -> None:
    watch = Stopwatch([], steady_from=1)
    a_round(watch, clock, train(0), 7.0)
    clock.now += 1.0  # another block's turn
    a_round(watch, clock, train(1), 1.0)
    a_round(watch, clock, Round("evaluate", 2, size=10), 50.0)
    clock.now += 20.0  # another block's test
    a_round(watch, clock, train(2), 3.0)
    assert watch.steady.seconds == pytest.approx(5.0)
    assert watch.steady.rate == pytest.approx(20 / 5.0)
    assert watch.training.seconds == pytest.approx(12.0)


def test_a_lap_starts_anew(clock: Clock) -> None:
    watch = Stopwatch([], steady_from=100)
    assert watch.take_interval() == 0.0
    a_round(watch, clock, train(0), 2.0)
    assert watch.take_interval() == pytest.approx(5.0)
    a_round(watch, clock, train(1), 1.0)
    a_round(watch, clock, train(2), 1.0)
    assert watch.take_interval() == pytest.approx(10.0)
    assert watch.steady.rate == 0.0
