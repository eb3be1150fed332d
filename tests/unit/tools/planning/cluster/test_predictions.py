"""Predictions for a cluster: limits that are known, and what must never be slower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bllpipe.models.partition import Link
from bllpipe.tools.planning.cluster.description import DeviceClass, Failures
from bllpipe.tools.planning.cluster.layouts import ClusterInputs, Layout, local_layouts, pipeline_layouts
from bllpipe.tools.planning.cluster.output import cluster_table, layout_text, left_out, to_json
from bllpipe.tools.planning.cluster.predictions import ENGINES, best_of, predict_cluster, predict_layout, simulate
from bllpipe.tools.planning.predict import PredictionInputs, predict_local
from tests.support.clusters import cluster, link
from tests.support.costs_by_hand import unit

FREE = link(0, 1e9)
UNITS = [unit(1), unit(1), unit(2), unit(1)]  # 3, 3, 6 and 3 seconds, the first of a block 1 to 2 less


def inputs(num_blocks: int = 2, units: Any = UNITS, **changed: Any) -> ClusterInputs:
    """On links that cost nothing, unless changed; a batch of 8 images was measured, and is that of a GPU."""
    network = PredictionInputs(units, batch_size=8, link=Link())
    return ClusterInputs(
        cluster(**{"within_node": FREE, "between_nodes": FREE, "batch_per_gpu": 8, **changed}), network, (num_blocks,)
    )


def test_without_latency_and_jitter_the_limit_is_reached() -> None:
    """One pipeline of two blocks, each with one replica: the step is that of the slower block, for twice the images."""
    found = best_of(inputs(), "bll", 2)
    assert found is not None and found.replicas == (1, 1)
    known = predict_local(inputs().network, 2)
    assert known is not None
    assert simulate(inputs(), found, 30, 0.0) == pytest.approx(2 * known.step_seconds, rel=1e-6)


def test_the_costly_block_has_the_replicas() -> None:
    """Of three GPUs: the cut after the second unit leaves 5 and 7 seconds a batch; two replicas halve one of them."""
    layouts = local_layouts(inputs(), 3)
    step, best = layouts[0]
    assert best.num_gpus == 3 and sorted(best.replicas) == [1, 2]
    assert simulate(inputs(), best, 30, 0.0) == pytest.approx(step, rel=1e-6)


def test_many_pipelines_do_the_work_of_as_many() -> None:
    """Sums that cost nothing: every pipeline goes at the pace of one."""
    one, many = (best_of(inputs(gpus=[4]), "bll", number) for number in (2, 64))
    assert one is not None and many is not None
    few = simulate(inputs(), Layout("bll", one.cut, one.replicas, one.parts, 1), 30, 0.0)
    assert simulate(inputs(), Layout("bll", one.cut, one.replicas, one.parts, 32), 30, 0.0) == pytest.approx(few)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("key", ["within_node", "between_nodes"])
def test_more_bandwidth_is_never_slower(engine: str, key: str) -> None:
    rates = []
    for rate in (1e-6, 2e-6, 1e-5, 1.0):
        links: dict[str, Any] = {"within_node": link(1, 1e-6), "between_nodes": link(1, 1e-6), key: link(1, rate)}
        given = inputs(**links)
        given = replace(
            given,
            network=replace(given.network, units=[replace(each, output_bytes=2000, parameters=2000) for each in UNITS]),
        )
        cut, replicas = ((), (1,)) if engine == "ddp" else ((2,), (1, 1))
        layout = Layout(engine, cut, replicas, 2, 8)
        rates.append(1 / simulate(given, layout, 12, 0.0))
    assert rates == sorted(rates)


@pytest.mark.parametrize("engine", ENGINES)
def test_less_latency_is_never_slower(engine: str) -> None:
    steps = []
    for latency in (0, 1e5, 1e6, 4e6):  # microseconds
        given = inputs(within_node=link(latency, 1e9), between_nodes=link(latency, 1e9))
        cut, replicas = ((), (1,)) if engine == "ddp" else ((2,), (1, 1))
        steps.append(simulate(given, Layout(engine, cut, replicas, 2, 4), 12, 0.0))
    assert steps == sorted(steps)


def test_jitter_costs_all_who_wait() -> None:
    """4,096 replicas wait for the slowest: nearly 20 % more in every step."""
    found = predict_layout(inputs(jitter=0.2), Layout("ddp", (), (1,), 1, 4096), images_per_epoch=1000)
    assert 0.12 < found.jitter_costs < 1 - 1 / 1.2
    alone = predict_layout(inputs(jitter=0.2), Layout("ddp", (), (1,), 1, 1), images_per_epoch=1000)
    assert abs(alone.jitter_costs) < 0.05


def test_price_and_epoch_by_hand() -> None:
    """10 parameters, no jitter: a step of 15 - 1 seconds on each of 16 GPUs, 128 images; an epoch of 1,280 is ten."""
    given = inputs(price_per_gpu_hour=3.0, failures=Failures(checkpoint_every_seconds=3.0, checkpoint_seconds=1.0))
    found = predict_layout(given, Layout("ddp", (), (1,), 1, 16), images_per_epoch=1280)
    assert found.batch_size == 128
    assert found.step_seconds == pytest.approx(14, rel=1e-6)
    assert found.of_ideal == pytest.approx(1, rel=1e-6)
    assert found.goodput == 0.75
    assert found.seconds_per_epoch == pytest.approx(10 * 14 / 0.75, rel=1e-6)
    assert found.price_per_epoch == pytest.approx(16 * 3 * 10 * 14 / 0.75 / 3600, rel=1e-6)


def test_parts_of_a_batch_cost_what_was_measured() -> None:
    """Half of the images were measured to take 3/4 of the time: so do 6 of 8 take 7/8, and 2 take 3/8."""
    half = [replace(each, forward=0.75 * each.forward) for each in UNITS]
    given = replace(inputs(), network=replace(inputs().network, parts={4: half}))
    assert [given.units_of(images)[0].forward for images in (8, 6, 4, 2, 16)] == [1, 0.875, 0.75, 0.375, 2]
    fast = replace(given, cluster=replace(given.cluster, device=DeviceClass(speed=4.0)))
    assert fast.units_of(8)[0].forward == 0.25


def test_places() -> None:
    """Two pipelines of blocks with 1 and 2 replicas."""
    layout = Layout("bll", (1,), (1, 2), 2, 2)
    assert [layout.places(block).tolist() for block in (0, 1)] == [[[0], [3]], [[1, 2], [4, 5]]]
    block = replace(layout, placement="block")
    assert [block.places(number).tolist() for number in (0, 1)] == [[[0], [1]], [[2, 3], [4, 5]]]
    every = np.concatenate([block.places(number).reshape(-1) for number in (0, 1)])
    assert sorted(every.tolist()) == list(range(layout.num_gpus))


def test_what_does_not_fit_the_memory_is_left_out() -> None:
    """A unit keeps 1,000 KiB for 8 images, and a GPU has 1,049: a stage fits that holds two microbatches of an eighth
    of 16 images, but neither a block of two units nor the whole network. No number of stages divides 7 GPUs."""
    big = [replace(each, memory_bytes=1000 * 2**10) for each in UNITS]
    given = inputs(gpus=[2, 7], device=DeviceClass(memory_gib=0.001))
    given = replace(given, network=replace(given.network, units=big))
    found = predict_cluster(given, 100)
    assert [(each.engine, each.num_gpus) for each in found] == [("1f1b", 2), ("zero-bubble", 2)]
    assert all(each.parts == 8 for each in found)
    assert left_out(given.cluster, found) == [
        "left out: bll on 2, 7 GPUs, as no layout divides them and fits the memory",
        "left out: 1f1b on 7 GPUs, as no layout divides them and fits the memory",
        "left out: zero-bubble (ZB-H1) on 7 GPUs, as no layout divides them and fits the memory",
        "left out: ddp on 2, 7 GPUs, as no layout divides them and fits the memory",
    ]


def test_the_table_and_the_record() -> None:
    given = inputs(gpus=[2, 4], price_per_gpu_hour=1.0, jitter=0.1, failures=Failures(node_mtbf_hours=10.0))
    done: list[int] = []
    found = predict_cluster(given, 800, done.append)
    assert done == [2, 4]
    assert [(each.num_gpus, each.engine) for each in found] == [(n, engine) for n in (2, 4) for engine in ENGINES]
    assert found == predict_cluster(given, 800), "the same for the same seed"
    table = cluster_table(found, has_failures=True, has_price=True).splitlines()
    assert len(table) == 1 + 8 + 4
    assert table[1].split()[:2] == ["2", "bll"] and "GPUs" in table[0] and "price" in table[0]
    record = to_json(given.cluster, ["a", "b", "c", "d"], found, {})
    assert record["predictions"][0]["cut"] == ["b"] and record["cluster"]["jitter"] == 0.1
    assert layout_text(found[3]) == "2 replicas"


def test_pipelines_have_as_many_microbatches_as_stages_at_least() -> None:
    layouts = [layout for _, layout in pipeline_layouts(inputs(), "1f1b", 8)]
    assert {len(each.replicas) for each in layouts} == {2, 4}
    assert all(each.parts >= len(each.replicas) and each.num_gpus == 8 for each in layouts)
