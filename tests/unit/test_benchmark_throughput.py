"""The jobs that the throughput benchmark starts, and the network that waits instead of computing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import limit, throughput
from benchmarks.emulated import Clock, Stage, stages
from benchmarks.throughput_cases import ENGINES, cases, stage_seconds
from bllpipe.config import load_config


class Counter(Clock):
    """Adds up instead of waiting."""

    def __init__(self) -> None:
        super().__init__(0.0, torch.Generator())
        self.total = 0.0

    def wait(self, seconds: float) -> None:
        self.total += seconds


def waited(clock: Counter) -> float:
    total, clock.total = clock.total, 0.0
    return total


@pytest.mark.parametrize("wants_input_gradient", [True, False])
def test_a_microbatch_takes_its_share_of_a_batch_there_and_back(wants_input_gradient: bool) -> None:
    clock = Counter()
    stage = Stage((3, 2, 2), forward=8.0, backward=16.0, batch_size=8, clock=clock)
    made = stage(torch.randn(2, 3, 2, 2, requires_grad=wants_input_gradient))
    assert made.shape == (2, 3, 2, 2) and waited(clock) == 2.0
    made.sum().backward()
    assert waited(clock) == 4.0, "a quarter of the batch"


def test_the_two_halves_of_the_way_back_can_be_asked_for_one_by_one() -> None:
    clock = Counter()
    stage = Stage((3, 2, 2), forward=8.0, backward=16.0, batch_size=8, clock=clock)
    x = torch.randn(8, 3, 2, 2, requires_grad=True)
    made = stage(x)
    waited(clock)
    torch.autograd.grad(made.sum(), [x], retain_graph=True)
    assert waited(clock) == 8.0
    torch.autograd.grad(made.sum(), list(stage.parameters()))
    assert waited(clock) == 8.0


def test_the_test_set_takes_no_time_and_the_last_stage_makes_scores() -> None:
    modules = stages(1, 10, [1.0, 1.0], [1.0, 1.0], batch_size=4)
    x = torch.randn(4, 1, 8, 8)
    for module in modules:
        x = module.eval()(x)
    assert x.shape == (4, 10)


@pytest.mark.parametrize("engine", ["1f1b", "interleaved", "zbv", "dualpipev"])
def test_every_rank_has_the_same_work_in_every_engine(engine: str) -> None:
    per_rank = [1.0, 3.0, 2.0, 1.0]
    seconds = stage_seconds(engine, per_rank)
    ranks = {"1f1b": [0, 1, 2, 3], "interleaved": [0, 1, 2, 3] * 2}.get(engine, [0, 1, 2, 3, 3, 2, 1, 0])
    totals = [sum(s for s, holder in zip(seconds, ranks, strict=True) if holder == rank) for rank in range(4)]
    assert totals == per_rank


@pytest.mark.parametrize("work", ["emulated", "cpu", "gpu"])
def test_every_case_is_a_config_that_can_run(work: str) -> None:
    words = ["--work", work, "--microbatches", "8", "16", "--rings", "1", "2", "--slow", "1.5", "--engines"]
    options = throughput.parser().parse_args([*words, *ENGINES])
    found = list(cases(options, ranks=4))
    assert len({case.name for case in found}) == len(found) == 2 + 2 * 5 + 1
    for case in found:
        load_config(None, case.settings)
        assert case.limit == (pytest.approx(32 / 0.18) if work == "emulated" else None)


@pytest.mark.ranks
def test_the_benchmark_runs_real_jobs_and_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--blocks", "2", "--microbatches", "2", "--engines", "bll", "1f1b", "--milliseconds", "2"]
    assert throughput.main([*words, "--steps", "6", "--repeats", "2", "--json", str(tmp_path / "found.json")]) == 0
    record: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    bll, rival = record["results"]
    assert (bll["engine"], rival["engine"], bll["images_per_second"]["n"]) == ("bll", "1f1b", 2)
    ratio = bll["images_per_second"]["median"] / rival["images_per_second"]["median"]
    assert rival["bll_is_faster_by"] == pytest.approx(ratio)
    assert bll["of_limit"] == pytest.approx(bll["images_per_second"]["median"] / (32 / 0.002))
    assert "1f1b p=2 m=2" in capsys.readouterr().out


@pytest.mark.ranks
def test_the_limit_is_that_of_the_slowest_block(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model.width=2", "data.batch_size=4", "blocks=2"]
    assert limit.main([part for word in words for part in ("--set", word)] + ["--n", "3", "--warmup", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    slowest = min(float(line.split()[-1]) for line in lines[1:3])
    assert lines[-1].startswith(f"limit: {slowest:.1f} images/s")
