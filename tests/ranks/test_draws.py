"""Networks that draw random numbers in training: the same bits whoever computes them, and after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn
from torch.nn.functional import dropout, relu

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


def modules(in_channels: int, num_classes: int, kind: str) -> list[nn.Module]:
    last, drop = nn.Linear(8, num_classes), nn.Dropout(0.5 if kind == "layers" else 0.0)
    if kind == "functions":
        return [Functional(in_channels * 64), Functional(8), last]
    first = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, 8), nn.ReLU(), drop)
    return [first, nn.Sequential(nn.Linear(8, 8), nn.Dropout(drop.p)), last]


def settings(kind: str, *others: str) -> tuple[str, ...]:
    return (*SETTINGS, f"model.name={__name__}:modules", f"model.args.kind={kind}", *others)


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


def test_backpropagation_is_resumed_to_the_same_bits(tmp_path: Path, kind: str) -> None:
    words = settings(kind, "method=bp", "engine=single")
    in_one_process(tmp_path / "whole", *words)
    in_one_process(tmp_path / "halves", *words, "stop_at=2")
    in_one_process(tmp_path / "halves", *words, resume=True)
    assert state_digest(tmp_path / "halves") == state_digest(tmp_path / "whole")


def test_shards_draw_other_numbers_in_every_step(tmp_path: Path, kind: str) -> None:
    """Or the other tests would prove nothing: the network does draw."""
    digests = set()
    for seed in range(2):
        in_one_process(tmp_path / str(seed), *settings(kind, "engine=sequential", "blocks=2"), f"seed={seed}")
        digests.add(state_digest(tmp_path / str(seed)))
    assert len(digests) == 2
