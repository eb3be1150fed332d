"""Schedules, played: the figures of the textbooks, and small ones by hand."""

from __future__ import annotations

import pytest

from bllpipe.tools.planning.predict import Op, StepOrder, gpipe, local, one_f_one_b, orders_of, simulate, zero_bubble

SIZES = [(1, 1), (2, 2), (2, 8), (3, 5), (4, 4), (4, 16), (8, 8), (16, 32)]


def makespan(schedule: StepOrder, stages: int, microbatches: int, message: float = 0.0, **seconds: float) -> float:
    orders = orders_of(schedule, stages, microbatches, steps=1, updates=False)
    return simulate([seconds] * stages, orders, [message] * stages).makespan


@pytest.mark.parametrize(("stages", "microbatches"), SIZES)
@pytest.mark.parametrize("schedule", [gpipe, one_f_one_b])
def test_balanced_synchronous_pipelines_take_m_plus_p_minus_1(
    schedule: StepOrder, stages: int, microbatches: int
) -> None:
    expected = (microbatches + stages - 1) * (2.0 + 3.0)
    assert makespan(schedule, stages, microbatches, F=2.0, B=3.0) == expected


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 1), (2, 2), (2, 8), (4, 4), (4, 16), (8, 8), (8, 32)])
def test_zero_bubble_h1(stages: int, microbatches: int) -> None:
    """m (F + B + W) + (p - 1) (F + B - W) for F = B = W (Qi et al. 2023, table 2)."""
    assert makespan(zero_bubble, stages, microbatches, F=1.0, B=1.0, W=1.0) == 3 * microbatches + stages - 1


@pytest.mark.parametrize("stage", range(4))
def test_zero_bubble_holds_no_more_than_the_first_stage_of_1f1b(stage: int) -> None:
    held, most = 0, 0
    for kind, _ in zero_bubble(stage, 4, 12):
        held += {"F": 1, "W": -1}.get(kind, 0)
        most = max(most, held)
    assert most == 4


@pytest.mark.parametrize(("stages", "steps"), [(1, 3), (4, 1), (4, 50), (8, 20)])
def test_local_learning_fills_once(stages: int, steps: int) -> None:
    """Behind the last block's first forward only that block's own steps are left."""
    assert makespan(local, stages, steps, F=2.0, L=3.0) == (stages - 1) * 2.0 + steps * 5.0


def test_local_learning_goes_at_the_pace_of_the_slowest_block() -> None:
    seconds = [{"F": 1.0, "L": 1.0}, {"F": 2.0, "L": 3.0}, {"F": 1.0, "L": 2.0}]
    few, more = (simulate(seconds, orders_of(local, 3, steps, 1, updates=False)) for steps in (10, 11))
    assert more.makespan - few.makespan == 5.0
    assert few.makespan == 1 + 10 * 5 - 3 + 3  # block 2 begins its last step while block 1 still learns


def test_gpipe_of_two_unequal_stages_by_hand() -> None:
    """rank 0   F0 F1 .  .  .  .  B0 B1   F = 1, B = 1
    rank 1   .  F0 F0 F1 F1 B0 B1       F = 2, B = 1"""
    seconds = [{"F": 1.0, "B": 1.0}, {"F": 2.0, "B": 1.0}]
    timeline = simulate(seconds, orders_of(gpipe, 2, 2, 1, updates=False))
    assert timeline.makespan == 8.0
    assert timeline.ends == (8.0, 7.0)
    assert timeline.busy == (4 / 8, 6 / 8)


def test_1f1b_of_two_unequal_stages_by_hand() -> None:
    """rank 0   F0 F0 F0 F1 F1 F1 B0 .  B1   F = 3, B = 1
    rank 1   .  .  .  F0 B0 .  F1 B1      F = 1, B = 1"""
    seconds = [{"F": 3.0, "B": 1.0}, {"F": 1.0, "B": 1.0}]
    timeline = simulate(seconds, orders_of(one_f_one_b, 2, 2, 1, updates=False))
    assert timeline.ends == (9.0, 8.0)


def test_messages_take_their_time_and_follow_one_another() -> None:
    """Two forwards of 1 s each, and messages of 3 s: they arrive at 4 and 7."""
    orders = [[Op(0, 0, "F"), Op(0, 1, "F")], [Op(1, 0, "F"), Op(1, 1, "F")]]
    timeline = simulate([{"F": 1.0}, {"F": 1.0}], orders, [3.0, 0.0])
    assert timeline.ends == (2.0, 8.0)


def test_a_message_to_oneself_costs_nothing() -> None:
    orders = [[Op(0, 0, "F"), Op(1, 0, "F"), Op(1, 0, "B"), Op(0, 0, "B")]]
    assert simulate([{"F": 1.0, "B": 1.0}] * 2, orders, [5.0, 5.0]).makespan == 4.0


def test_there_and_back_are_two_lanes() -> None:
    assert makespan(gpipe, 2, 1, message=0.5, F=1.0, B=1.0) == 4 + 2 * 0.5


def test_nothing_takes_no_time() -> None:
    timeline = simulate([{}], [[]])
    assert (timeline.makespan, timeline.busy) == (0.0, (0.0,))


@pytest.mark.parametrize(
    "orders",
    [
        [[Op(0, 0, "B"), Op(0, 0, "F")]],  # before what it needs
        [[Op(1, 0, "F")], []],  # nobody does stage 0
        [[Op(0, 0, "F"), Op(0, 0, "B")], [Op(1, 0, "F"), Op(1, 0, "W"), Op(1, 0, "B")]],
    ],
)
def test_ranks_that_wait_for_ever(orders: list[list[Op]]) -> None:
    with pytest.raises(ValueError, match="the schedule cannot continue: rank 0 at Op"):
        simulate([{"F": 1.0, "B": 1.0, "W": 1.0}] * 2, orders)


@pytest.mark.parametrize("schedule", [gpipe, one_f_one_b, zero_bubble])
@pytest.mark.parametrize("stage", range(3))
def test_every_microbatch_passes_once(schedule: StepOrder, stage: int) -> None:
    order = schedule(stage, 3, 5)
    assert sorted(order) == sorted({*order})
    kinds = "FBW" if schedule is zero_bubble else "FB"
    assert {*order} == {(kind, microbatch) for kind in kinds for microbatch in range(5)}
