"""What blocks and stages cost, and what engines would make of them."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from bllpipe.models.partition import Link, local_cost, local_seconds, memory_bytes, stage_cost, stage_seconds
from bllpipe.tools.planning.predict import (
    PredictionInputs,
    predict_all,
    predict_data_parallel,
    predict_local,
    predict_pipeline,
    run_seconds,
)
from tests.support.costs_by_hand import unit

UNITS = [unit(1, head=5), unit(2, head=7, update=0.5), unit(4, head=0.25)]


def test_a_local_block_by_hand() -> None:
    """Forward 1 + 2, backward 2 + 4, less 1 for the first unit's input, update 0.5, and the head of the second."""
    assert local_seconds(UNITS, 0, 2) == 3 + 6 - 1 + 0.5 + 7
    assert local_seconds(UNITS, 2, 3) == 4 + 8 - 4 + 0.25


def test_a_stage_by_hand() -> None:
    """No head but the loss of the last; only the images need no gradient."""
    first, last = stage_seconds(UNITS, 0, 2), stage_seconds(UNITS, 2, 3)
    assert (first.forward, first.backward, first.backward_of_input, first.update) == (3, 5, 2, 0.5)
    assert (last.forward, last.backward, last.backward_of_input) == (4, 8.25, 4.25)


def test_messages_that_overlap_count_only_when_they_are_slower() -> None:
    slow, fast = Link(10.0, latency=1.0), Link(1000.0)
    assert local_cost(UNITS, fast)(0, 2) == local_seconds(UNITS, 0, 2)
    assert local_cost([unit(0.1), unit(0.1)], slow)(0, 1) == 1 + 100 / 10
    assert stage_cost([unit(0.1), unit(0.1)], slow)(0, 1) == 1 + 100 / 10


def test_messages_that_do_not_overlap_are_added() -> None:
    link = Link(10.0, latency=1.0, overlaps=False)
    assert local_cost(UNITS, link)(1, 2) == pytest.approx(local_seconds(UNITS, 1, 2) + 2 * 11)
    assert stage_cost(UNITS, link)(1, 2) == pytest.approx(2 + 4 + 4 * 11)  # there and back
    assert local_cost(UNITS, link)(0, 3) == local_seconds(UNITS, 0, 3)


def test_memory() -> None:
    assert memory_bytes(UNITS, 0, 2) == 2000 + 10
    assert memory_bytes(UNITS, 1, 3) == 2000 + 10 + 100
    assert memory_bytes(UNITS, 1, 3, heads=False) == 2000 + 100


@pytest.mark.parametrize("cost", [local_cost, stage_cost])
def test_what_is_too_large_or_cannot_learn_is_impossible(cost: object) -> None:
    assert callable(cost)
    assert cost(UNITS, Link(), 2009)(1, 3) == inf
    assert cost(UNITS, Link(), 2110)(1, 3) < inf
    ends_flat = [unit(), unit(parameters=0)]
    assert cost(ends_flat, Link())(1, 2) == inf
    assert cost(ends_flat, Link())(0, 2) < inf


def even(num_units: int, link: Link | None = None) -> PredictionInputs:
    """Units that make even stages and even blocks: 3 s each, whether their input needs a gradient or not."""
    units = [unit(1, backward_without_input=2.0) for _ in range(num_units)]
    return PredictionInputs(units, batch_size=60, link=link or Link())


@pytest.mark.parametrize(("devices", "microbatches"), [(2, 4), (4, 4), (4, 8), (8, 16)])
def test_local_learning_against_1f1b_is_m_plus_p_minus_1_to_m(devices: int, microbatches: int) -> None:
    local, other = predict_local(even(8), devices), predict_pipeline(even(8), "1f1b", devices, microbatches)
    assert local is not None and other is not None
    ratio = local.images_per_second / other.images_per_second
    assert ratio == pytest.approx((microbatches + devices - 1) / microbatches)
    assert local.speed_up == pytest.approx(devices)
    assert local.busy == pytest.approx([1.0] * devices)
    assert other.busy == pytest.approx([1 / ratio] * devices)


def test_local_learning_is_as_fast_as_its_slowest_block() -> None:
    setting = PredictionInputs([unit(1), unit(5), unit(1)], batch_size=100, link=Link())
    found = predict_local(setting, 3)
    assert found is not None
    assert found.images_per_second == pytest.approx(100 / 10)
    assert found.busy == pytest.approx([2 / 10, 1, 2 / 10])


def test_a_slow_link_is_the_limit() -> None:
    found = predict_local(even(4, Link(10.0)), 4)
    assert found is not None
    assert found.step_seconds == pytest.approx(100 / 10)


@pytest.mark.parametrize("steps", [1, 3, 7, 100])
def test_a_run_fills_once(steps: int) -> None:
    assert run_seconds(even(4), [1, 2, 3], steps) == pytest.approx(3 * 1 + steps * 3)


def test_data_parallelism_by_hand() -> None:
    """Forward 4 and backward 8, halved; the gradients of 40 parameters, 160 bytes, once over the link."""
    assert predict_data_parallel(even(4), 2).step_seconds == pytest.approx(2 + 4)
    slow = predict_data_parallel(even(4, Link(16.0)), 2)
    assert slow.step_seconds == pytest.approx(2 + 160 / 16)
    assert slow.busy == pytest.approx([6 / 12] * 2)


def test_zero_bubble_is_between_1f1b_and_the_limit() -> None:
    setting = PredictionInputs([unit(1)] * 8, batch_size=60, link=Link())
    rates = {found.engine: found.images_per_second for found in predict_all(setting, 4, [8])}
    assert rates["gpipe"] <= rates["1f1b"] < rates["zb-h1"] <= 60 / 6
    assert set(rates) == {"bll", "ddp", "gpipe", "1f1b", "zb-h1"}


def test_a_pipeline_updates_once_a_step() -> None:
    setting = PredictionInputs([unit(1, update=0.25, backward_without_input=2.0)] * 2, batch_size=60, link=Link())
    found = predict_pipeline(setting, "gpipe", 2, 4)
    assert found is not None
    assert found.step_seconds == pytest.approx((4 + 1) * 3 / 4 + 0.25)


def test_parts_cost_what_was_measured_for_so_many_images() -> None:
    """Two stages of half the units; four microbatches of 15 images take 2 s instead of 3 / 4 each, the update stays."""
    whole, part = (
        [unit(1, update=0.25, backward_without_input=2.0)] * 2,
        [unit(2 / 3, backward_without_input=4 / 3)] * 2,
    )
    setting = PredictionInputs(whole, batch_size=60, link=Link(), parts={15: part, 30: part})
    found = predict_pipeline(setting, "gpipe", 2, 4)
    assert found is not None
    assert found.step_seconds == pytest.approx((4 + 1) * 2 + 0.25)
    assert predict_data_parallel(setting, 2).step_seconds == pytest.approx(2 * 2 + 2 * 0.25)
    unmeasured = predict_pipeline(setting, "gpipe", 2, 6)
    assert unmeasured is not None
    assert unmeasured.step_seconds == pytest.approx((6 + 1) * 3 / 6 + 0.25)


def test_a_processor_carries_its_own_messages() -> None:
    """Two blocks of 12 s; 100 bytes at 50 a second, in or out, are 2 s of each. The ring of ddp: 160 bytes."""
    setting = even(4, Link(50.0, overlaps=False))
    local, pipeline = predict_local(setting, 2), predict_pipeline(setting, "gpipe", 2, 4)
    assert local is not None and pipeline is not None
    assert local.step_seconds == pytest.approx(6 + 2)
    assert pipeline.step_seconds == pytest.approx((4 + 1) * (6 / 4 + 2 * 2 / 4))
    assert predict_data_parallel(setting, 2).step_seconds == pytest.approx(2 + 4 + 160 / 50)


def test_devices_that_wait_leave_each_other_what_they_share() -> None:
    """Beside busy others everything takes 1.5 times as long. Who is always busy gains nothing, 1F1B with two stages and
    two microbatches is busy for two thirds of a step."""
    setting = replace(even(2), contention=1.5)
    local, pipeline = predict_local(setting, 2), predict_pipeline(setting, "1f1b", 2, 2)
    assert local is not None and pipeline is not None
    assert local.step_seconds == pytest.approx(3)
    assert pipeline.step_seconds == pytest.approx((2 + 1) / 2 * 3 * (1 + 0.5 * 2 / 3) / 1.5)
    assert local.speed_up == pytest.approx(2 / 1.5)


def test_parts_of_a_batch_have_an_image() -> None:
    setting = PredictionInputs([unit()] * 4, batch_size=3, link=Link())
    assert [each.microbatches for each in predict_all(setting, 4, [2, 4])] == [None, 2, 2, 2]  # and no ddp


def test_what_does_not_fit_is_missing() -> None:
    found = predict_all(even(4), 2, [4], memory_limit=500)
    assert [each.engine for each in found] == ["ddp"]
