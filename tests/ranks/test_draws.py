"""Networks that draw random numbers in training: the same bits whoever computes them, and after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, relu

import bllpipe
from bllpipe.engines import build
from bllpipe.learn.draws import NOT_SEEDED
from tests.support import jobs
from tests.support.same_bits import metrics_without_timing, state_digest

pytestmark = pytest.mark.ranks
SETTINGS = ("steps=4", "data.batch_size=32", "log.every_steps=2", "checkpoint.every_steps=2")
KINDS = ("layers", "functions", "loss")


class Functional(nn.Module):
    """Draws in its forward pass; none of its names says so."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, 8)

    def forward(self, x: Tensor) -> Tensor:
        return dropout(relu(self.linear(x.flatten(1))), 0.5, self.training)


def noisy(alpha: Tensor, scores: Tensor, target: bllpipe.Target, x: Tensor) -> dict[str, Tensor]:
    """A loss that draws."""
    return {"pred": cross_entropy(scores + torch.randn_like(scores), target.label_B)}


def modules(in_channels: int, num_classes: int, kind: str) -> list[nn.Module]:
    last, drop = nn.Linear(8, num_classes), nn.Dropout(0.5 if kind == "layers" else 0.0)
    if kind == "functions":
        return [Functional(in_channels * 64), Functional(8), last]
    first = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, 8), nn.ReLU(), drop)
    return [first, nn.Sequential(nn.Linear(8, 8), nn.Dropout(drop.p)), last]


def settings(kind: str, *others: str) -> tuple[str, ...]:
    loss = ("method=own", f"objective.function={__name__}:noisy") if kind == "loss" else ()
    return (*SETTINGS, f"model.name={__name__}:modules", f"model.args.kind={kind}", *loss, *others)


def in_one_process(run_dir: Path, *words: str, resume: bool = False) -> None:
    jobs.in_this_process(run_dir, *words, options=("--resume", "auto") if resume else ())


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(kind: str) -> tuple[str, ...]:
    return settings(kind, "blocks=2", "shards=2")


@pytest.fixture(scope="module")
def reference(run: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, which was not interrupted."""
    path = tmp_path_factory.mktemp("draws") / "sequential"
    in_one_process(path, "engine=sequential", *run)
    return path


def test_ranks_have_the_bits_of_one_process(tmp_path: Path, run: tuple[str, ...], reference: Path) -> None:
    jobs.succeed(jobs.ranks(3, jobs.words(tmp_path / "ranks", *run, "replicas=[1, 1]")))
    assert state_digest(tmp_path / "ranks") == state_digest(reference)
    assert metrics_without_timing(tmp_path / "ranks") == metrics_without_timing(reference)


def test_a_run_of_replicas_is_resumed_in_one_process(tmp_path: Path, run: tuple[str, ...], reference: Path) -> None:
    jobs.succeed(jobs.ranks(4, jobs.words(tmp_path / "run", *run, "replicas=[2, 1]", "stop_at=2")))
    in_one_process(tmp_path / "run", "engine=sequential", *run, resume=True)
    assert state_digest(tmp_path / "run") == state_digest(reference)


def test_replicas_go_on_with_what_one_process_began(tmp_path: Path, run: tuple[str, ...], reference: Path) -> None:
    in_one_process(tmp_path / "run", "engine=sequential", *run, "stop_at=2")
    words = jobs.words(tmp_path / "run", *run, "replicas=[2, 1]", options=("--resume", "auto"))
    jobs.succeed(jobs.ranks(4, words))
    assert state_digest(tmp_path / "run") == state_digest(reference)


def test_streams_have_the_bits_of_one_process(tmp_path: Path, kind: str) -> None:
    for engine in ("sequential", "streams"):
        in_one_process(tmp_path / engine, f"engine={engine}", *settings(kind, "blocks=2"))
    assert state_digest(tmp_path / "streams") == state_digest(tmp_path / "sequential")


@pytest.mark.parametrize("what", ["layers", "functions"])
def test_backpropagation_is_resumed_to_the_same_bits(tmp_path: Path, what: str) -> None:
    words = settings(what, "method=bp", "engine=single")
    in_one_process(tmp_path / "whole", *words)
    in_one_process(tmp_path / "halves", *words, "stop_at=2")
    in_one_process(tmp_path / "halves", *words, resume=True)
    assert state_digest(tmp_path / "halves") == state_digest(tmp_path / "whole")


def test_a_run_that_is_not_seeded_is_resumed_to_other_bits(
    tmp_path: Path, run: tuple[str, ...], reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the other tests would prove nothing: the network does draw."""
    monkeypatch.setattr(build, "make_draws", lambda *about: NOT_SEEDED)
    in_one_process(tmp_path / "run", "engine=sequential", *run)
    in_one_process(tmp_path / "halves", "engine=sequential", *run, "stop_at=2")
    in_one_process(tmp_path / "halves", "engine=sequential", *run, resume=True)
    assert len({state_digest(path) for path in (reference, tmp_path / "run", tmp_path / "halves")}) == 3
