"""Replicas in predictions: small ones by hand, the best layout against all others."""

from __future__ import annotations

from itertools import combinations, pairwise, product
from math import inf

import pytest

from bllpipe.models.partition import Link
from bllpipe.tools.planning.predict import PredictionInputs, predict_local
from bllpipe.tools.planning.replicas import best_layout, best_replicas, possible_shards, predict_replicas
from tests.support.costs_by_hand import unit

UNITS = [unit(1, head=5), unit(2, head=7, update=0.5), unit(4, head=0.25)]
INPUTS = PredictionInputs(UNITS, batch_size=60, link=Link())


def test_replicas_share_all_but_the_update() -> None:
    """Units 0 and 1 as a block: forward 3, backward 6 - 1, head 7, update 0.5. Of four shards three replicas have two,
    one and one."""
    found = predict_replicas(INPUTS, [2], [3, 1], shards=4)
    last = 4 + 8 - 4 + 0.25
    assert found.prediction.step_seconds == pytest.approx(max(15 / 2 + 0.5, last))
    assert found.prediction.busy == pytest.approx([8 / last, 1])
    assert found.num_ranks == 5


def test_gradients_cost_a_ring_and_messages_their_share() -> None:
    """10 parameters a unit, 4 bytes each, in halves: two messages of 40 bytes. Alpha has 100 bytes, in two shards."""
    link = Link(10.0, latency=1.0, overlaps=False)
    inputs = PredictionInputs(UNITS, batch_size=60, link=link)
    found = predict_replicas(inputs, [2], [2, 2], shards=2).prediction
    seconds = 15 / 2 + 0.5 + 2 * (1 + 40 / 10) + 1 + 50 / 10, 8.25 / 2 + 2 * (1 + 20 / 10) + 1 + 50 / 10
    assert found.step_seconds == pytest.approx(max(seconds))
    assert found.busy == pytest.approx([each / max(seconds) for each in seconds])


def test_above_64_ranks_of_blocks_there_are_two_feedback_ranks() -> None:
    assert predict_replicas(INPUTS, [2], [40, 24], shards=60).num_ranks == 65
    assert predict_replicas(INPUTS, [2], [40, 25], shards=60).num_ranks == 67
    found = best_replicas(INPUTS, 66, [60], num_blocks=2)
    assert found is not None and found.num_ranks <= 66


@pytest.mark.parametrize("overlaps", [True, False])
def test_one_replica_of_one_shard_is_what_is_predicted_without(overlaps: bool) -> None:
    inputs = PredictionInputs(UNITS, 60, Link(20.0, 0.5, overlaps), overhead=0.1, contention=1.5)
    known = predict_local(inputs, 2)
    assert known is not None
    assert predict_replicas(inputs, known.cut, [1, 1], shards=1).prediction.step_seconds == pytest.approx(
        known.step_seconds
    )


def test_parts_cost_what_was_measured_for_a_shard() -> None:
    """A shard of half the images that takes as long as the whole batch: two replicas bring nothing."""
    inputs = PredictionInputs(UNITS, batch_size=60, link=Link(), parts={30: UNITS})
    alone, shared = (predict_replicas(inputs, [], [number], number).prediction.step_seconds for number in (1, 2))
    assert shared == alone


@pytest.mark.parametrize("num_blocks", [None, 1, 2, 3])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5, 7])
def test_no_layout_is_faster_than_the_best(num_ranks: int, num_blocks: int | None) -> None:
    """Against all cuts of five uneven units with all numbers of replicas; the third unit cannot be a block alone."""
    weights = [3.0, 1.0, 4.0, 1.5, 5.0]

    def cost(first: int, end: int, replicas: int) -> float:
        return inf if (first, end) == (2, 3) else sum(weights[first:end]) / replicas + 0.3 * (replicas - 1)

    def value(cut: tuple[int, ...], replicas: tuple[int, ...]) -> float:
        return max(cost(*block, number) for block, number in zip(pairwise([0, *cut, 5]), replicas, strict=True))

    layouts = [
        (cut, replicas)
        for blocks in ([num_blocks] if num_blocks else range(1, 6))
        for cut in combinations(range(1, 5), blocks - 1)
        for replicas in product(range(1, 4), repeat=blocks)
        if sum(replicas) <= num_ranks
    ]
    found = best_layout(5, num_ranks, 3, cost, num_blocks)
    if not layouts:
        assert found is None
        return
    assert found in layouts
    least = min(value(*layout) for layout in layouts)
    assert value(*found) == least
    assert sum(found[1]) == min(sum(each[1]) for each in layouts if value(*each) == least), "no rank for nothing"


def test_the_slowest_block_has_the_most_replicas() -> None:
    slow = PredictionInputs([unit(1), unit(9)], batch_size=64, link=Link())
    found = best_replicas(slow, num_ranks=6, shards=[1, 2, 4], num_blocks=2)
    assert found is not None
    assert (found.prediction.cut, found.replicas, found.shards) == ((1,), (1, 4), 4)
    assert found.prediction.images_per_second == pytest.approx(64 / (18 / 4))


def test_shards_that_bring_nothing_are_not_chosen() -> None:
    found = best_replicas(INPUTS, num_ranks=2, shards=[4, 2, 1])
    assert found is not None and (found.shards, found.replicas) == (1, (1,))


def test_what_is_impossible_has_no_plan() -> None:
    assert best_replicas(INPUTS, num_ranks=4, shards=[1, 2], num_blocks=4) is None
    assert best_replicas(INPUTS, num_ranks=9, shards=[1, 2], memory_limit=999.0) is None


def test_shards_divide_the_batch_and_hold_two_images() -> None:
    assert possible_shards(64, 9) == [1, 2, 4, 8]
    assert possible_shards(12, 100) == [1, 2, 3, 4, 6]
    assert possible_shards(1, 5) == [1]
