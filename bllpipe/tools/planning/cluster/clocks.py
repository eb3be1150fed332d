"""Clocks of block-local learning and of data parallelism on many devices: recurrences in max-plus algebra.

A clock is a NumPy vector with an element for every pipeline, all of which do the same on other images. One of three
pipelines, with two replicas of block 1, which share the shards of the pipeline's batch:

    shard         0         1
    block 0    replica 0 replica 0     F  a forward pass
    block 1    replica 0 replica 1     L  a local step: targets, backward, head

    block 0    F0 L0 F1 L1 +U          +  the sum over the replicas in all pipelines, which waits for the slowest
    block 1       F0 L0    +U          U  update
    block 1             F1 L1 +U

A message of an edge begins when it is ready, its receive is known to be posted, and the one before it is sent:

    post[n]   = max(arrival[n - posted], freed[n - ring])    a buffer is freed when the receiver asks for the next one
    start[n]  = max(ready[n], post[n] + latency, sent[n - 1])
    sent[n]   = start[n] + transfer
    arrival[n] = sent[n] + latency

So a block of T seconds with one buffer takes T + 2 latency + transfer a step, and with r buffers and r posted receives
max(T, transfer, (T + 2 latency + transfer) / r).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from bllpipe.tools.planning.cluster.description import Floats


class Edges:
    """One edge of every pipeline. ``latency`` and ``transfer`` are vectors or numbers, in seconds; ``notice`` is what
    the sender learns of a posted receive after. ``in_flight`` None: the sender never waits for a buffer."""

    def __init__(
        self,
        latency: Floats | float,
        transfer: Floats | float,
        notice: Floats | float,
        ring: int,
        in_flight: int | None,
        posted: int,
    ) -> None:
        self._latency, self._transfer, self._notice = latency, transfer, notice
        self._ring, self._in_flight, self._posted = ring, in_flight, min(posted, ring)
        self._offered: deque[Floats] = deque()
        self._freed: deque[Floats] = deque(maxlen=ring)
        self._arrived: deque[Floats] = deque(maxlen=self._posted)
        self._sent: deque[Floats] = deque(maxlen=in_flight or 1)

    def send(self, now: Floats) -> Floats:
        """When the sender goes on that has a message at ``now``. If it may have to wait for a buffer, all messages
        before this one have been received."""
        if self._in_flight is not None:
            assert not self._offered, "a shard passes all blocks before the next one does"
            if len(self._sent) == self._in_flight:
                now = np.maximum(now, self._sent[0])
        self._offered.append(now)
        return now

    def receive(self, now: Floats) -> Floats:
        """When the next message is there for a receiver that asks for it at ``now``."""
        if self._arrived:
            self._freed.append(now)
        start = self._offered.popleft()
        if len(self._freed) == self._ring:
            start = np.maximum(start, self._freed[0] + self._notice)
        if len(self._arrived) == self._posted:
            start = np.maximum(start, self._arrived[0] + self._notice)
        if self._sent:
            start = np.maximum(start, self._sent[-1])
        self._sent.append(start + self._transfer)
        self._arrived.append(self._sent[-1] + self._latency)
        return np.maximum(now, self._arrived[-1])


@dataclass(frozen=True)
class BlockClock:
    """A block of every pipeline: seconds of a shard's ``forward`` and local step (``learn``), of the ``update``, and of
    the sum over all ``replicas`` (of one pipeline) of all pipelines."""

    replicas: int
    forward: float
    learn: float
    update: float = 0.0
    sum: float = 0.0

    def owner(self, shard: int, num_shards: int) -> int:
        """The replica that owns a shard: replica r has those from r S / R to (r + 1) S / R."""
        return ((shard + 1) * self.replicas - 1) // num_shards


@dataclass(frozen=True)
class EdgeTimes:
    """Seconds of messages: vectors with an element for every pipeline, or numbers. ``alpha`` is, by block and replica
    and by the replica of the next block, latency and transfer; ``feedback``, by block and replica, is the latency
    to the feedback and back."""

    alpha: Mapping[tuple[int, int, int], tuple[Floats | float, Floats | float]]
    feedback: Mapping[tuple[int, int], Floats | float]
    handshake: bool = True
    ring: int = 2
    in_flight: int = 2
    posted: int = 1
    lag: int = 1
    feedback_message: float = 0.0

    def edges(self, latency: Floats | float, transfer: Floats | float, in_flight: int | None) -> Edges:
        notice = latency if self.handshake else 0.0
        return Edges(latency, transfer, notice, self.ring, in_flight, self.posted)


def simulate_local(
    blocks: Sequence[BlockClock],
    times: EdgeTimes,
    num_pipelines: int,
    num_shards: int,
    steps: int,
    jitter: float = 0.0,
    random: Generator | None = None,
) -> Floats:
    """When each step is done everywhere, in seconds [steps], of block-local learning with ``num_shards`` shards a
    pipeline."""
    simulation = _Local(blocks, times, num_pipelines, num_shards)
    return np.array([simulation.step(Draws(jitter, random)) for _ in range(steps)])


@dataclass(frozen=True)
class Draws:
    """Factors of times that vary by up to ``jitter``, uniformly distributed."""

    jitter: float
    random: Generator | None

    def of(self, size: int | tuple[int, ...]) -> Floats | float:
        if not self.jitter:
            return 1.0
        assert self.random is not None, "jitter is drawn"
        return 1 + self.jitter * (2 * self.random.random(size) - 1)


class _Local:
    def __init__(self, blocks: Sequence[BlockClock], times: EdgeTimes, num_pipelines: int, num_shards: int) -> None:
        self._blocks, self._times, self._pipelines, self._shards = blocks, times, num_pipelines, num_shards
        self._clocks = [[np.zeros(num_pipelines) for _ in range(block.replicas)] for block in blocks]
        self._alphas = {pair: times.edges(*each, times.in_flight) for pair, each in times.alpha.items()}
        self._targets = {owner: times.edges(each, 0.0, None) for owner, each in times.feedback.items()}
        self._stats = {owner: times.edges(each, 0.0, None) for owner, each in times.feedback.items()}
        self._feedback = np.zeros(len(blocks))
        # the last ``lag`` steps' statistics of every block, when they have arrived: [shards, pipelines]
        self._arrived: list[deque[Floats]] = [deque() for _ in blocks]

    def step(self, draws: Draws) -> float:
        """Simulates a step; returns when it is done."""
        last = len(self._blocks) - 1
        for number in range(last + 1):
            self._send_targets(number)
        sent = [np.zeros((self._shards, self._pipelines)) for _ in self._blocks]
        for shard in range(self._shards):  # all that a shard waits for belongs to shards before it, or blocks before
            for number, block in enumerate(self._blocks):
                replica = block.owner(shard, self._shards)
                now = self._clocks[number][replica]
                if number > 0:
                    now = self._alpha(number - 1, shard).receive(now)
                now = now + block.forward * draws.of(self._pipelines)
                if number < last:
                    now = self._alpha(number, shard).send(now)
                now = self._targets[number, replica].receive(now)
                sent[number][shard] = self._deliver_stats(number, replica, now)
                self._clocks[number][replica] = now + block.learn * draws.of(self._pipelines)
        for number, block in enumerate(self._blocks):
            self._arrived[number].append(sent[number])
            if block.replicas * self._pipelines > 1:
                end = max(float(clock.max()) for clock in self._clocks[number]) + block.sum
                self._clocks[number] = [np.full(self._pipelines, end)] * block.replicas
            self._clocks[number] = [clock + block.update for clock in self._clocks[number]]
        return max(float(clock.max()) for clocks in self._clocks for clock in clocks)

    def _alpha(self, number: int, shard: int) -> Edges:
        """The edge on which the alpha of ``shard`` leaves block ``number``."""
        src, dst = (self._blocks[each].owner(shard, self._shards) for each in (number, number + 1))
        return self._alphas[number, src, dst]

    def _send_targets(self, number: int) -> None:
        """One step of a feedback loop: it absorbs the statistics of all shards of step t - lag, and sends targets."""
        now, each = float(self._feedback[number]), self._times.feedback_message / 2
        total = self._shards * self._pipelines
        if len(self._arrived[number]) == self._times.lag:
            arrived = self._arrived[number].popleft().T.reshape(-1)  # in the order of shards
            left = each * np.arange(total, 0, -1, dtype=np.float64)
            now = max(now + total * each, float((arrived + left).max()))
        ready = (now + each * np.arange(1, total + 1, dtype=np.float64)).reshape(self._pipelines, self._shards)
        for shard in range(self._shards):
            self._targets[number, self._blocks[number].owner(shard, self._shards)].send(ready[:, shard])
        self._feedback[number] = now + total * each

    def _deliver_stats(self, number: int, replica: int, now: Floats) -> Floats:
        """When the feedback has the statistics that are sent at ``now``; it is always ready to receive."""
        edges = self._stats[number, replica]
        edges.send(now)
        return edges.receive(np.zeros(self._pipelines))


def simulate_data_parallel(
    forward: float,
    backward: float,
    update: float,
    hidden: float,
    exposed: float,
    num_replicas: int,
    steps: int,
    jitter: float = 0.0,
    random: Generator | None = None,
) -> Floats:
    """When each step is done, in seconds [steps], of replicas that sum up their gradients: ``hidden`` seconds of it
    during the backward pass of the slowest one, ``exposed`` after it."""
    draws = Draws(jitter, random)
    forwards = forward * draws.of((steps, num_replicas)) * np.ones((steps, num_replicas))
    passes = forwards + backward * draws.of((steps, num_replicas))
    ends = np.maximum(passes.max(axis=1), forwards.max(axis=1) + hidden) + exposed + update
    return np.cumsum(ends)


def step_seconds(ends: Floats) -> float:
    """The mean step, from the ends of all, without the first third, in which a pipeline fills."""
    first = len(ends) // 3
    return float((ends[-1] - ends[first]) / (len(ends) - 1 - first))
