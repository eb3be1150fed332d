"""Whatever is wrong with a job, all its ranks end, with one message that helps and an exit code that is not 0.

What can be known before the first message is refused before it: no run directory is there yet, on which the ranks agree
before they wait for each other. How many seconds that takes is for benchmarks/endings.py."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.support import jobs

pytestmark = pytest.mark.ranks
TWO = (*jobs.RESNET, "blocks=2")


def fail(done: subprocess.CompletedProcess[str]) -> str:
    """What the failed job said, once."""
    assert done.returncode != 0, done.stdout
    messages = [line for line in done.stderr.splitlines() if line.startswith("bllpipe:")]
    assert len(messages) == 1, f"{len(messages)} messages\n{done.stderr}"
    return done.stderr


def archive(path: Path, **changes: object) -> str:
    """An npz data set of 64 tiny images, with ``changes``."""
    random = np.random.default_rng(0)
    arrays = {
        "train_x": random.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8),
        "train_y": np.arange(64) % 4,
        "test_x": random.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8),
        "test_y": np.arange(16) % 4,
    }
    np.savez(path, **{**arrays, **changes})  # type: ignore[arg-type]  # savez takes any arrays
    return f"data.path={path}"


def test_wrong_world_size(tmp_path: Path) -> None:
    text = fail(jobs.forked_torchrun(3, jobs.words(tmp_path / "run")))
    assert "4 blocks and 1 feedback rank need 5 ranks, but torchrun started 3; use --nproc_per_node=5" in text
    assert not (tmp_path / "run").exists(), "refused before the ranks wait for each other"


def test_single_process_engine_under_torchrun() -> None:
    assert "needs a single process, but torchrun started 2" in fail(jobs.ranks(2, jobs.words(None, "engine=threads")))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.learning_rate=1", "unknown key 'optimizer.learning_rate'; did you mean 'optimizer.lr'"),
        ("epochs=many", "epochs is 'many'.*expected a whole number"),
        ("model.name=resnet5O", "did you mean 'resnet50'"),
    ],
)
def test_wrong_keys_need_no_ranks(tmp_path: Path, setting: str, message: str) -> None:
    done = jobs.forked(jobs.words(tmp_path / "run", setting))
    text = fail(done)
    assert re.search(message, text), text
    assert done.returncode == 2
    assert not (tmp_path / "run").exists()


def test_unknown_key_under_torchrun() -> None:
    text = fail(jobs.ranks(5, jobs.words(None, "optimizer.learning_rate=1")))
    assert "did you mean 'optimizer.lr'" in text


def test_duplicate_key(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("seed: 1\nepochs: 2\nseed: 3\n")
    text = fail(jobs.forked(["--config", str(tmp_path / "twice.yaml")]))
    assert "line 3" in text
    assert "duplicate key 'seed'" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("blocks=[layer9.9]",), "cannot cut after 'layer9.9'"),
        (("blocks=[8]",), "cannot cut after 8"),
        (("data.batch_size=5000",), "data.batch_size is 5000, but digits has only"),
        (("data.name=imagefolder", "data.path=nowhere"), "nowhere/train does not exist"),
    ],
)
def test_ranks_end_together_with_one_message(tmp_path: Path, settings: tuple[str, ...], message: str) -> None:
    text = fail(jobs.ranks(3, jobs.words(tmp_path / "run", *TWO, *settings)))
    assert message in text
    assert not (tmp_path / "run").exists(), "refused before the ranks wait for each other"


def test_missing_data(tmp_path: Path) -> None:
    text = fail(jobs.forked(jobs.words(None, *TWO, "data.name=npz", f"data.path={tmp_path}/none.npz")))
    assert "none.npz does not exist" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_y": np.arange(64) - 1}, "train label -1; expected classes numbered from 0"),
        ({"test_y": np.full(16, 9)}, "test label 9, but training labels only go up to 3"),
        ({"train_x": np.full((64, 8, 8, 3), np.nan, np.float32)}, "NaN or Inf, the first in image 0"),
    ],
    ids=["negative", "beyond", "nan"],
)
def test_wrong_data(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    place = archive(tmp_path / "data.npz", **changes)
    done = jobs.forked(jobs.words(tmp_path / "run", *TWO, "data.name=npz", place))
    assert message in fail(done)
    assert done.returncode == 2
    assert not list((tmp_path / "run").glob("metrics*")), "refused before the first step"


def test_nan_in_training_ends_all_ranks_and_the_status_says_where(tmp_path: Path) -> None:
    text = fail(jobs.ranks(3, jobs.words(tmp_path / "run", *TWO, "optimizer.lr=1e30")))
    assert re.search(r"^bllpipe: rank \d \(block \d\), step \d+: .* (NaN|nan|Inf|inf)", text), text
    status = jobs.read_json(tmp_path / "run" / "status.json")
    assert status["status"] == "failed"
    assert status["role"] in ("block 0", "block 1")
    assert "lower optimizer.lr" in status["reason"]
    assert 0 < status["step"] < 440
