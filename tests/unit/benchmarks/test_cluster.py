"""The benchmark of predictions for clusters: its cases, its devices, and what it derives."""

from __future__ import annotations

import pytest
import torch

from benchmarks import cluster, hosts
from benchmarks.cluster_cases import BATCH, ENGINES, LINKS, TEACHER, WORKS, Cell, predicted_step, taught_overhead
from benchmarks.cluster_devices import VaryingStage, stages
from bllpipe.config import load_config
from bllpipe.engines import topology

TEACHING = Cell(*TEACHER, seconds=0.4)


def test_every_case_once_and_that_which_teaches_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "reason_against", lambda: None)
    found = cluster.cells(cluster.parser().parse_args([]))
    assert found[0].is_teacher and len(set(found)) == len(found) == 3 * len(WORKS) * len(LINKS) * len(ENGINES)


def test_without_hosts_there_are_no_slow_links(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hosts, "reason_against", lambda: "no root")
    found = cluster.cells(cluster.parser().parse_args(["--ranks", "4"]))
    assert {each.link for each in found} == {"none"}
    assert "left out: links with a delay or a rate: no root" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ENGINES)
def test_settings_are_those_of_a_run(engine: str) -> None:
    config = load_config(None, Cell(engine, 4, "[2,1,1,1]", "none", 0.4).settings)
    assert config.engine == {"bll": "ranks"}.get(engine, engine)
    assert topology(config).world_size == (5 if engine == "bll" else 4)


@pytest.mark.parametrize("work", ["even", "[2,1,1,1]"])
@pytest.mark.parametrize(("engine", "share"), [("bll", 1.0), ("1f1b", 8 / 11), ("ddp", 1.0)])
def test_without_delays_and_overhead_predictions_are_the_limits_of_the_schedules(
    engine: str, share: float, work: str
) -> None:
    """But for 1F1B, whose uneven stages hide a part of the bubble."""
    cell = Cell(engine, 4, work, "none", 0.4)
    rate = BATCH / predicted_step(cell, 0.0, 1, 40)
    if engine == "1f1b" and work != "even":
        assert share * cell.limit < rate < cell.limit
    else:
        assert rate == pytest.approx(share * cell.limit, rel=0.01)


def test_the_overhead_is_that_with_which_the_case_was_made() -> None:
    step = predicted_step(TEACHING, 0.003, 1, 10)
    assert taught_overhead(TEACHING, step, 1) == pytest.approx(0.003, abs=1e-4)


def test_results_of_a_cell() -> None:
    options = cluster.parser().parse_args(["--posted", "1"])
    step = predicted_step(TEACHING, 0.002, 1, options.steps)
    varying = Cell("ddp", 4, "jitter 20 %", "none", 0.4)
    taught, found = cluster.results({TEACHING: [BATCH / step], varying: [70.0, 66.0, 68.0]}, options)
    assert taught["error"] == pytest.approx(0, abs=1e-3) and taught["deviation"] == 0
    assert found["images_per_second"].median == 68.0
    assert found["error"] == pytest.approx(found["predicted"] / 68 - 1)
    assert 0 < found["deviation"] < 0.05


def test_replicas_draw_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of three passes of rank 0 and 1, by the clock that they wait on."""
    drawn = []
    for rank in ("0", "1", "0"):
        monkeypatch.setenv("RANK", rank)
        (stage,) = stages(3, 10, [1e-6], [2e-6], 32, jitter=0.2)
        assert isinstance(stage, VaryingStage)
        drawn.append([stage._factor(1.0) for _ in range(3)])
    assert drawn[0] == drawn[2] != drawn[1]
    assert all(0.8 <= each <= 1.2 for each in drawn[0] + drawn[1])


def test_a_stage_has_a_gradient_for_every_number() -> None:
    first, last = stages(3, 10, [0.01, 0.02], [0.02, 0.04], 4, ballast=7)
    scores = last(first(torch.randn(4, 3, 8, 8)))
    scores.sum().backward()
    assert scores.shape == (4, 10)
    assert [(p.grad is not None and p.grad.shape == p.shape) for p in [*first.parameters(), *last.parameters()]] == [
        True
    ] * 4
