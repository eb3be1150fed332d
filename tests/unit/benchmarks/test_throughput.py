"""The jobs that the throughput benchmark starts, and the network that waits instead of computing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import limit, throughput
from benchmarks.emulated import Clock, Stage, stages
from benchmarks.throughput_cases import ENGINES, Plan, cases, stage_seconds
from bllpipe.config import load_config
from tests.support import forks
from tests.support.spawning import FORKSERVER


class Counter(Clock):
    """Adds up instead of waiting."""

    def __init__(self) -> None:
        super().__init__(0.0, torch.Generator())
        self.total = 0.0

    def wait(self, seconds: float, since: float) -> None:
        self.total += seconds


def waited(clock: Counter) -> float:
    total, clock.total = clock.total, 0.0
    return total


def test_what_one_wait_is_too_long_the_next_is_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds + 0.25))
    clock = Clock(0.0, torch.Generator())
    now[0] += 0.5  # what was computed before the wait is a part of it
    for _ in range(4):
        clock.wait(seconds=2.0, since=100.0 if now[0] < 101 else now[0])
    assert now[0] == pytest.approx(100 + 4 * 2.0 + 0.25)


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


PREDICTIONS = [
    {"engine": engine, "num_blocks": blocks, "microbatches": number, "cut": cut, "images_per_second": rate}
    for engine, blocks, number, cut, rate in (
        ("bll", 2, None, ["layer2.2"], 90.0),
        ("gpipe", 2, 8, ["layer2.3"], 60.0),
        ("1f1b", 2, 8, ["layer2.3"], 70.0),
        ("ddp", 2, None, [], 80.0),
        ("bll", 4, None, ["layer1.1", "layer2.2", "layer3.3"], 150.0),
        ("gpipe", 4, 8, ["layer1.2", "layer2.3", "layer3.4"], 100.0),
    )
]


def options_of(*words: str) -> argparse.Namespace:
    return throughput.parser().parse_args([*words, "--engines", *ENGINES])


@pytest.mark.parametrize("work", ["emulated", "cpu", "gpu"])
def test_every_case_is_a_config_that_can_run(work: str) -> None:
    options = options_of(
        "--work", work, "--blocks", "4", "--microbatches", "8", "16", "--rings", "1", "2", "--slow", "1.5"
    )
    found = cases(options)
    assert len({case.name for case in found}) == len(found) == 2 + 2 * 6 + 2
    for case in found:
        load_config(None, case.settings)
        assert case.limit == (pytest.approx(32 / 0.18) if work == "emulated" else None)


def test_more_stages_than_microbatches_are_left_out_where_a_schedule_needs_them() -> None:
    names = {case.name for case in cases(options_of("--blocks", "8", "--microbatches", "4"))}
    assert "gpipe p=8 m=4" in names and "1f1b p=8 m=4" not in names


def test_the_same_prediction_as_that_of_bllpipe_plan() -> None:
    found = {case.name: case.predicted for case in cases(options_of("--milliseconds", "100"))}
    assert found["bll p=4"] == pytest.approx(32 / 0.1)
    assert found["gpipe p=4 m=8"] == found["1f1b p=4 m=8"] == pytest.approx(32 / 0.1 * 8 / 11)
    assert found["zbv p=4 m=8"] is None


def test_real_cuts_are_those_that_suit_each_engine() -> None:
    options = options_of("--work", "cpu", "--blocks", "2")
    found = {case.engine: case for case in cases(options, {2: Plan.of(PREDICTIONS, 2)})}
    assert "blocks=[layer2.2]" in found["bll"].settings and found["bll"].predicted == 90
    assert "blocks=[layer2.3]" in found["1f1b"].settings and found["1f1b"].predicted == 70
    assert "blocks=[layer1.2,layer2.3,layer3.4]" in found["zbv"].settings and found["zbv"].predicted is None
    assert "blocks=2" in found["ddp"].settings and found["ddp"].predicted == 80


@pytest.mark.ranks
def test_the_benchmark_runs_real_jobs_and_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "subprocess", forks.SUBPROCESS)
    words = ["--blocks", "2", "--microbatches", "2", "--engines", "bll", "1f1b", "--milliseconds", "2"]
    assert throughput.main([*words, "--steps", "6", "--repeats", "2", "--json", str(tmp_path / "found.json")]) == 0
    record: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    bll, rival = record["results"]
    assert (bll["engine"], rival["engine"], bll["images_per_second"]["n"]) == ("bll", "1f1b", 2)
    ratios = [one / other for one, other in zip(bll["rates"], rival["rates"], strict=True)]
    assert rival["bll_is_faster_by"] == pytest.approx(sum(ratios) / 2)
    assert bll["of_limit"] == pytest.approx(sum(bll["rates"]) / 2 / (32 / 0.002))
    alpha = 16 * 8 * 8 * 4  # bytes an image; labels, targets, statistics and headers are more at a small batch
    assert rival["sent_bytes_per_image"] == 2 * alpha and alpha < bll["sent_bytes_per_image"] < 2 * alpha
    assert len(bll["busy"]) == 3 and len(rival["busy"]) == 2
    assert "1f1b p=2 m=2" in capsys.readouterr().out


@pytest.mark.ranks
def test_the_limit_is_that_of_the_slowest_block(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit, "multiprocessing", SimpleNamespace(get_context=lambda how: FORKSERVER))
    words = ["model.width=2", "data.batch_size=4", "blocks=2"]
    assert limit.main([part for word in words for part in ("--set", word)] + ["--n", "3", "--warmup", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    slowest = min(float(line.split()[-1]) for line in lines[1:3])
    assert lines[-1].startswith(f"limit: {slowest:.1f} images/s")
