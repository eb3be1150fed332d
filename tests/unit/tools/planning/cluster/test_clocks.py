"""Clocks against closed forms: back-pressure, the feedback's round trip, bubbles, jitter."""

from __future__ import annotations

import numpy as np
import pytest

from bllpipe.tools.planning.cluster.clocks import (
    BlockClock,
    Edges,
    EdgeTimes,
    simulate_data_parallel,
    simulate_local,
    step_seconds,
)
from bllpipe.tools.planning.cluster.description import Floats
from bllpipe.tools.planning.cluster.synchronous import PROGRAMS, StageClock, simulate_pipelines


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def chain(
    seconds: list[float],
    latency: float = 0.0,
    transfer: float = 0.0,
    ring: int = 2,
    posted: int = 1,
    lag: int = 1,
    to_feedback: float = 0.0,
    handshake: bool = True,
) -> tuple[list[BlockClock], EdgeTimes]:
    """Blocks of one replica, of so many seconds, a third of them forward."""
    alpha = {(block, 0, 0): (latency, transfer) for block in range(len(seconds) - 1)}
    feedback = {(block, 0): to_feedback for block in range(len(seconds))}
    blocks = [BlockClock(1, T / 3, 2 * T / 3) for T in seconds]
    return blocks, EdgeTimes(alpha, feedback, handshake, ring, ring, posted, lag)


def local_step(blocks: list[BlockClock], times: EdgeTimes, steps: int = 120) -> float:
    return step_seconds(simulate_local(blocks, times, 1, 1, steps))


def test_local_learning_goes_at_the_pace_of_the_slowest_block() -> None:
    assert local_step(*chain([1.0, 3.0])) == pytest.approx(3.0)
    assert local_step(*chain([3.0, 1.0, 2.0])) == pytest.approx(3.0)


def test_one_buffer_costs_a_round_trip() -> None:
    """The receive is posted when the block asks for the next message, known to the sender a latency later, and the
    message takes another one, and its transfer."""
    assert local_step(*chain([1.0, 1.0], latency=0.3, transfer=0.1, ring=1)) == pytest.approx(1 + 2 * 0.3 + 0.1)
    assert local_step(*chain([1.0, 1.0], 0.3, 0.1, ring=1, handshake=False)) == pytest.approx(1 + 0.3 + 0.1)


@pytest.mark.parametrize(
    ("latency", "ring", "posted"), [(0.3, 2, 1), (0.7, 2, 1), (0.7, 4, 1), (0.7, 2, 2), (3.0, 4, 4), (9.0, 5, 5)]
)
def test_messages_in_flight(latency: float, ring: int, posted: int) -> None:
    """One receive at a time is one message a round trip, whatever the ring; r at a time are r a round trip and a
    step."""
    trip = 2 * latency + 0.1
    expected = max(1.0, trip if posted == 1 else (1 + trip) / ring)
    blocks, times = chain([1.0] * 4, latency, 0.1, ring, posted)
    assert local_step(blocks, times, steps=600) == pytest.approx(expected, rel=0.01)


def test_a_link_carries_one_message_after_another() -> None:
    assert local_step(*chain([1.0, 1.0], latency=0.1, transfer=1.7, ring=8, posted=8)) == pytest.approx(1.7)


@pytest.mark.parametrize("lag", [1, 2, 4])
def test_the_round_trip_of_the_feedback_takes_lag_steps(lag: int) -> None:
    """A target follows the statistics of ``lag`` steps before, there and back."""
    found = local_step(*chain([1.0, 1.0], ring=8, posted=8, lag=lag, to_feedback=1.7), steps=240)
    assert found == pytest.approx(max(1.0, 3.4 / lag), rel=0.01)


def test_a_slow_feedback_sets_the_pace() -> None:
    """12 shards of 4 pipelines for each of two blocks."""
    times = EdgeTimes({(0, 0, 0): (0.0, 0.0)}, {(0, 0): 0.0, (1, 0): 0.0}, feedback_message=0.5)
    ends = simulate_local([BlockClock(1, 0.01, 0.01)] * 2, times, 4, 3, 60)
    assert step_seconds(ends) == pytest.approx(12 * 0.5, rel=0.02)


def test_a_sender_waits_for_a_buffer() -> None:
    """The receiver asks at 0, 5 and 10; one buffer at each end. Message 1 begins when its receive is posted, at 5, and
    message 2 may be written then."""
    edges = Edges(0.0, 0.0, 0.0, ring=1, in_flight=1, posted=1)
    asked, sent = [], []
    for number in range(3):
        sent.append(float(edges.send(np.array([float(number)]))[0]))
        asked.append(float(edges.receive(np.array([5.0 * number]))[0]))
    assert sent == [0.0, 1.0, 5.0]
    assert asked == [0.0, 5.0, 10.0]


def test_replicas_share_the_shards_and_wait_for_each_other() -> None:
    """Of 4 shards block 0 has all, and the replicas of block 1 own two each (docs/scaling.md): 8, and 2 * 2 + 1 + 0.5
    with sum and update; the first replica of three owns 1, 1 and 2."""
    assert [BlockClock(2, 1, 1).owner(shard, 4) for shard in range(4)] == [0, 0, 1, 1]
    assert [BlockClock(3, 1, 1).owner(shard, 4) for shard in range(4)] == [0, 1, 2, 2]
    blocks = [BlockClock(1, 0.25, 0.75), BlockClock(2, 2.0, 2.0, update=0.5, sum=1.0)]
    alpha: dict[tuple[int, int, int], tuple[Floats | float, Floats | float]] = {
        (0, 0, 0): (0.0, 0.0),
        (0, 0, 1): (0.0, 0.0),
    }
    times = EdgeTimes(alpha, {(0, 0): 0.0, (1, 0): 0.0, (1, 1): 0.0}, ring=4, in_flight=4, posted=4)
    assert step_seconds(simulate_local(blocks, times, 1, 4, 60)) == pytest.approx(2 * 4 + 1 + 0.5)


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 1), (2, 2), (4, 4), (4, 16), (8, 8)])
@pytest.mark.parametrize("handshake", [True, False])
def test_bubbles_of_synchronous_pipelines(stages: int, microbatches: int, handshake: bool) -> None:
    """1F1B: (m + p - 1) (F + B); ZB-H1: 3 m + p - 1 for F = B = W."""

    def step(engine: str, **seconds: float) -> float:
        ends = simulate_pipelines(
            [StageClock(seconds)] * stages, PROGRAMS[engine], microbatches, 1, 12, handshake=handshake
        )
        return step_seconds(ends)

    assert step("1f1b", F=2.0, B=3.0) == pytest.approx((microbatches + stages - 1) * 5)
    assert step("zero-bubble", F=1.0, B=1.0, W=1.0) == pytest.approx(3 * microbatches + stages - 1)


@pytest.mark.parametrize("microbatches", [2, 3, 8])
def test_latencies_of_1f1b_by_hand(microbatches: int) -> None:
    """Two stages that take no time, a latency of 1. F0 leaves rank 0 at 0, as rank 1 has posted its receive long ago;
    then rank 0 posts the send of F1 with the receive of B0:

        1  F0 arrives at rank 1, which posts the receive of F1 and sends B0, whose receive it knows of
        2  B0 arrives at rank 0, which learns of the receive of F1 too, and sends F1
        3  F1 arrives at rank 1, and so on: two latencies for every microbatch
    """
    ends = simulate_pipelines([StageClock({}, latency=1.0)] * 2, PROGRAMS["1f1b"], microbatches, 1, 12)
    assert step_seconds(ends) == 2 * microbatches


def test_transfers_of_gradients_and_activations_are_separate() -> None:
    """GPipe-like: with one microbatch a step is F, message, F, B, message, B."""
    stages = [StageClock({"F": 1.0, "B": 1.0}, transfer=0.5)] * 2
    ends = simulate_pipelines(stages, PROGRAMS["zero-bubble"], 1, 1, 12, handshake=False)
    assert step_seconds(ends) == pytest.approx(4 + 2 * 0.5)


def test_pipelines_sum_up_their_gradients() -> None:
    stages = [StageClock({"F": 1.0, "B": 1.0, "U": 0.25}, sum=3.0)]
    assert step_seconds(simulate_pipelines(stages, PROGRAMS["1f1b"], 4, 5, 12)) == pytest.approx(8 + 3 + 0.25)
    assert step_seconds(simulate_pipelines(stages, PROGRAMS["1f1b"], 4, 1, 12)) == pytest.approx(8 + 0.25)


@pytest.mark.parametrize("replicas", [1, 2, 8, 64])
def test_synchronous_replicas_wait_for_the_slowest(replicas: int) -> None:
    """The largest of R uniform draws from 1 - j to 1 + j is 1 + j (R - 1) / (R + 1) in the mean."""
    expected = 1 + 0.2 * (replicas - 1) / (replicas + 1)
    assert step_seconds(
        simulate_data_parallel(1.0, 0.0, 0.0, 0.0, 0.0, replicas, 6000, 0.2, random())
    ) == pytest.approx(expected, rel=0.01)
    blocks = [BlockClock(1, 1.0, 0.0)]
    ends = simulate_local(blocks, EdgeTimes({}, {(0, 0): 0.0}), replicas, 1, 6000, 0.2, random())
    assert step_seconds(ends) == pytest.approx(expected, rel=0.01)


def test_data_parallelism_hides_a_sum_behind_its_backward_pass() -> None:
    assert step_seconds(simulate_data_parallel(1.0, 2.0, 0.5, 1.5, 0.25, 4, 9)) == pytest.approx(3 + 0.25 + 0.5)
    assert step_seconds(simulate_data_parallel(1.0, 2.0, 0.5, 5.0, 0.25, 4, 9)) == pytest.approx(1 + 5 + 0.25 + 0.5)


def test_times_are_the_same_for_the_same_seed() -> None:
    blocks, times = chain([1.0, 1.0])
    one, same, other = (simulate_local(blocks, times, 8, 1, 20, 0.3, random(seed)) for seed in (1, 1, 2))
    assert one.tolist() == same.tolist() != other.tolist()
