"""The examples run as they stand, and under torchrun end in the same bits."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import bllpipe
from tests.support import forks
from tests.support.jobs import REPOSITORY, succeed

LEAST = {"own_sequential": 0.8, "user_loss": 0.5, "vision_transformer": 0.2}  # accuracy after two epochs; chance: 0.1
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3")
IN_A_ROW = str(Path(__file__).parents[2] / "support" / "in_a_row.py")


def run(folder: Path, *words: str) -> str:
    """What the examples say; run directories are in ``folder``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return succeed(forks.run([sys.executable, *words], env=environment, cwd=folder)).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every example was run here, its run directory called as itself. One process: torch takes seconds to import."""
    place = tmp_path_factory.mktemp("examples")
    (place / "said").write_text(run(place, IN_A_ROW, *(f"{name}={name}" for name in LEAST)))
    return place


@pytest.mark.parametrize("name", LEAST)
def test_an_example_learns(name: str, folder: Path) -> None:
    assert min(bllpipe.Run(folder / name).block_accuracy) > LEAST[name]


@pytest.mark.ranks
def test_a_script_under_torchrun_ends_in_the_bits_of_a_single_process(folder: Path) -> None:
    """Also the second time that it trains."""
    together = run(folder, *TORCHRUN, IN_A_ROW, "own_sequential=first", "own_sequential=second")
    runs = [bllpipe.Run(folder / name) for name in ("own_sequential", "first", "second")]
    assert len({run.state_sha256 for run in runs}) == 1
    assert [run.summary["engine"] for run in runs] == ["sequential", "ranks", "ranks"]
    said = f"test accuracy {runs[0].accuracy:.4f} in the run, {runs[0].accuracy:.4f} of the model"
    assert said in (folder / "said").read_text() and together.count(said) == 2, "one rank says it"


def test_every_example_is_run_here() -> None:
    assert {file.stem for file in (REPOSITORY / "docs" / "examples").glob("*.py")} == LEAST.keys()
