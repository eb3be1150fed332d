"""The host waits for the GPU in no step but those that write a line: torch itself raises where it would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from bllpipe.engines.streams_graph import WavefrontGraph, WavefrontStep
from bllpipe.messages import Round
from bllpipe.training.worker import Actor
from tests.gpu.machines import needs_gpus
from tests.support import jobs

pytestmark = [needs_gpus(1), pytest.mark.timeout(120, method="thread")]
FIRST, LINE = 6, 10  # ordinary steps and captures are over by then; a line is written every so many steps


@contextmanager
def waiting_is(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From step ``FIRST`` on waiting is an error, in steps that write no line, and in graphs of such steps."""
    carry_out, whole_step = Actor.run_round, WavefrontGraph.run_round

    def is_strict(entry: Round) -> bool:
        return entry.phase == "train" and entry.step >= FIRST and (entry.step + 1) % LINE != 0

    def watched(actor: Actor, entry: Round) -> None:
        with waiting_is("error" if is_strict(entry) else "default"):
            carry_out(actor, entry)

    def watched_step(whole: WavefrontGraph, wave: WavefrontStep) -> bool:
        with waiting_is("error" if all(is_strict(entry) for _, entry in wave) else "default"):
            return whole_step(whole, wave)

    monkeypatch.setattr(Actor, "run_round", watched)
    monkeypatch.setattr(WavefrontGraph, "run_round", watched_step)
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("capture", ["false", "blocks", "true"])
@pytest.mark.parametrize("engine", ["sequential", "streams"])
@pytest.mark.parametrize("method", ["bll", "predsim"])
def test_no_step_waits(strict: None, tmp_path: Path, method: str, engine: str, capture: str) -> None:
    settings = ("device=cuda", "model.width=8", "steps=25", f"log.every_steps={LINE}", "optimizer.clip_norm=1.0")
    jobs.in_this_process(tmp_path, *settings, f"method={method}", f"engine={engine}", f"gpu.capture={capture}")


def test_waiting_would_be_found(strict: None) -> None:
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones((), device="cuda").item()
