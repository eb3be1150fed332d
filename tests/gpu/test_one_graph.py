"""A step of the wavefront is one launch, on a real GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bllpipe.engines.streams_graph import WavefrontGraph, WavefrontStep
from tests.gpu.machines import needs_gpus
from tests.support import jobs

pytestmark = [needs_gpus(1), pytest.mark.timeout(120, method="thread")]
STEPS, BLOCKS, FIRST = 20, 4, 3  # ordinary steps come first


def test_a_steady_step_is_one_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launches, per_step = list[int](), list[int]()
    replay, carry_out = torch.cuda.CUDAGraph.replay, WavefrontGraph.run_round

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        launches.append(id(graph))
        replay(graph)

    def noted(whole: WavefrontGraph, wave: WavefrontStep) -> bool:
        before = len(launches)
        is_whole = carry_out(whole, wave)
        if is_whole:
            per_step.append(len(launches) - before)
        return is_whole

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    monkeypatch.setattr(WavefrontGraph, "run_round", noted)
    settings = ("device=cuda", "engine=streams", "gpu.capture=true", "model.width=8", f"blocks={BLOCKS}")
    jobs.in_this_process(tmp_path, *settings, f"steps={STEPS}", "log.every_steps=100", "checkpoint.every_steps=0")
    assert per_step == [1] * (STEPS - FIRST - BLOCKS + 1)
