"""torch's own sanitizer watches a wavefront on real streams: it prints what two of them might do at the same time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gpu.machines import needs_gpus
from tests.support import jobs

pytestmark = [needs_gpus(1), pytest.mark.timeout(120)]


@pytest.mark.parametrize("more", [("feedback.update=sgd", "feedback.lag=2", "precision.wire=bf16")], ids=" ".join)
def test_no_race_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]) -> None:
    monkeypatch.setenv("TORCH_CUDA_SANITIZER", "1")
    settings = ("device=cuda", "engine=streams", "model.width=8", "steps=12", "log.every_steps=4", *more)
    done = jobs.succeed(jobs.alone(jobs.words(tmp_path, *settings), timeout=100))
    assert "possible data race" not in done.stderr + done.stdout
