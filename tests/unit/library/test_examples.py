"""The examples run as they stand, and under torchrun end in the same bits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bllpipe
from tests.ranks.jobs import REPOSITORY, succeed

EXAMPLES = REPOSITORY / "docs" / "examples"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")


def run(folder: Path, *words: str) -> str:
    """What a script says; ``words`` start it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *words]
    return succeed(
        subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=folder)
    ).stdout


@pytest.mark.parametrize(("name", "epochs", "least"), [("own_objective", 1, 0.5), ("vision_transformer", 1, 0.2)])
def test_an_example_learns(name: str, epochs: int, least: float, tmp_path: Path) -> None:
    out = run(tmp_path, str(EXAMPLES / f"{name}.py"), f"--epochs={epochs}")
    last = out.strip().splitlines()[-1]
    assert last.startswith("test accuracy of every block:")
    assert all(float(accuracy) > least for accuracy in re.findall(r"0\.\d+", last))


@pytest.mark.ranks
def test_a_script_under_torchrun_ends_in_the_bits_of_a_single_process(tmp_path: Path) -> None:
    """Also the second time that it trains."""
    script, twice = (str(path) for path in (EXAMPLES / "own_sequential.py", Path(__file__).parent / "twice.py"))
    alone = run(tmp_path, script, "--run-dir", "alone", "--epochs=1")
    together = run(tmp_path, *TORCHRUN, "--nproc_per_node=3", twice, script, "first", "second", "--epochs=1")
    runs = [bllpipe.Run(tmp_path / name) for name in ("alone", "first", "second")]
    assert len({run.state_sha256 for run in runs}) == 1 and runs[0].accuracy > 0.8
    assert [run.summary["engine"] for run in runs] == ["sequential", "ranks", "ranks"]
    said = f"test accuracy {runs[0].accuracy:.4f} in the run, {runs[0].accuracy:.4f} of the model"
    assert said in alone and together.count(said) == 2, "one rank says it"


def test_every_example_is_run_here() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {"own_sequential", "own_objective", "vision_transformer"}
