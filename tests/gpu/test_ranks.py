"""Ranks on GPUs: several on one, with gloo and pinned memory between them; and one each, with NCCL."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.machines import needs_gpus
from tests.support import jobs

SETTINGS = ("device=cuda", "blocks=2", "gpu.deterministic=true", "model.width=8")
MORE = ("data.augment.rotation=0", "steps=30", "log.every_steps=10")
LONGEST = 90  # seconds of one job, its start and its end with it


def turns(folder: Path, *settings: str) -> str:
    """The bits of blocks that take turns on one GPU."""
    jobs.succeed(jobs.alone(jobs.words(folder, "engine=sequential", *SETTINGS, *MORE, *settings), timeout=LONGEST))
    return str(jobs.summary(folder)["state_sha256"])


@needs_gpus(1)
@pytest.mark.timeout(2 * LONGEST + 20)
def test_ranks_that_share_a_gpu_learn_the_same(tmp_path: Path) -> None:
    settings = ("backend.alpha=gloo", "gpu.capture=true", "feedback.device=cuda")
    done = jobs.succeed(jobs.torchrun(3, jobs.words(tmp_path / "ranks", *SETTINGS, *MORE, *settings), timeout=LONGEST))
    assert jobs.summary(tmp_path / "ranks")["state_sha256"] == turns(tmp_path / "turns"), done.stderr


@needs_gpus(2)
@pytest.mark.timeout(LONGEST + 20)
@pytest.mark.parametrize("more", [(), ("precision.wire=bf16",), ("gpu.capture=true",)], ids=str)
def test_ranks_with_a_gpu_each_learn_the_same_over_nccl(tmp_path: Path, more: tuple[str, ...]) -> None:
    settings = ("backend.alpha=nccl", "feedback.device=cpu", *more)
    jobs.succeed(jobs.torchrun(3, jobs.words(tmp_path / "ranks", *SETTINGS, *MORE, *settings), timeout=LONGEST))
    found = jobs.summary(tmp_path / "ranks")
    assert found["steps"] == 30 and 0 < found["test_accuracy"] <= 1, "a lane on a CPU rounds otherwise: no digest"


@needs_gpus(2)
@pytest.mark.timeout(LONGEST + 20)
@pytest.mark.parametrize("engine", ["1f1b", "zbv", "deepspeed", "ddp"])
def test_synchronous_engines_learn_on_gpus(tmp_path: Path, engine: str) -> None:
    if engine == "deepspeed":
        pytest.importorskip("deepspeed", reason="deepspeed is not installed: pip install 'bllpipe[deepspeed]'")
    blocks = 4 if engine == "zbv" else 2
    settings = ("device=cuda", "method=bp", f"engine={engine}", f"blocks={blocks}", "model.width=8", *MORE)
    jobs.succeed(jobs.torchrun(2, jobs.words(tmp_path / "run", *settings), timeout=LONGEST))
    found = jobs.summary(tmp_path / "run")
    assert found["steps"] == 30 and 0 < found["test_accuracy"] <= 1
