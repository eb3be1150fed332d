"""Callbacks: which a run has, and what engines call when."""

from __future__ import annotations

import random
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bllpipe.config import load_config
from bllpipe.engines import Callback, Options, in_process
from bllpipe.engines.failure import report_failure
from bllpipe.engines.runner import displays
from bllpipe.errors import ConfigError, NonFiniteError, WireError
from bllpipe.launch import choose_callbacks
from bllpipe.training.worker import Worker
from tests.support import forks

SMALL = ("engine=sequential", "blocks=2", "model.width=2", "steps=4", "data.batch_size=16", "evaluate.every_epochs=0")


class Events(Callback):
    """Notes what is called."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_start(self, job: Any, store: Any, worker: Worker) -> None:
        self.events.append(f"start {worker.rank} of {job.topology.world_size}")

    def on_end(self, worker: Worker) -> None:
        self.events.append(f"end {worker.rank}")

    def on_summary(self, run_directory: Path) -> None:
        self.events.append(f"summary {run_directory.name}: {(run_directory / 'summary.json').is_file()}")

    def on_failure(self, run_directory: Path, error: BaseException) -> None:
        self.events.append(f"failure {run_directory.name}: {error}")

    def display(self, job: Any, store: Any) -> AbstractContextManager[object]:
        self.events.append(f"display {job.directory.path.name}")
        return nullcontext()


def test_an_engine_calls_them_around_the_run_of_every_worker(tmp_path: Path) -> None:
    seen = Events()
    in_process.run_sequential(load_config(None, SMALL), Options(run_dir=str(tmp_path / "run"), callbacks=(seen,)))
    starts, ends = [f"start {rank} of 3" for rank in range(3)], [f"end {rank}" for rank in range(3)]
    assert seen.events == [*starts, "display run", *ends, "summary run: True"]


def test_a_display_draws_no_random_numbers_of_the_run() -> None:
    """The import of rich, which comes with the first display, once drew from those of Python."""

    class Drawing(Events):
        def display(self, job: Any, store: Any) -> AbstractContextManager[object]:
            random.random(), np.random.rand(), torch.rand(1)
            return nullcontext()

    job: Any = SimpleNamespace(callbacks=(Drawing(),))
    before = random_states()
    with displays(job, store=job):
        assert random_states() == before


def random_states() -> list[str]:
    return [str(random.getstate()), str(np.random.get_state()), str(torch.get_rng_state().tolist())]


def test_a_run_that_fails_calls_them_with_its_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = Events()
    with pytest.raises(NonFiniteError, match="step"):
        options = Options(run_dir=str(tmp_path / "run"), callbacks=(seen,))
        in_process.run_sequential(load_config(None, [*SMALL, "optimizer.lr=1e30", "schedule.name=constant"]), options)
    assert len([event for event in seen.events if event.startswith("failure run: rank ")]) == 1
    assert not any(event.startswith(("end", "summary")) for event in seen.events)


def test_only_the_rank_that_fails_first_calls_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store: Any = dist.HashStore()
    store.set("directory", str(tmp_path))
    first, second = Events(), Events()
    report_failure(NonFiniteError("the loss is nan"), store, store, 1, "block 1", [first])
    store.set("failure/reported", "yes")
    report_failure(WireError("block 1 is gone"), store, store, 0, "block 0", [second])
    assert first.events == [f"failure {tmp_path.name}: the loss is nan"] and second.events == []


@pytest.mark.parametrize(("code", "printed"), [(5, "exit"), (0, "")])
def test_a_process_that_ends_with_an_error_calls_them_at_its_exit(code: int, printed: str) -> None:
    program = f"""
from bllpipe.engines.failure import leave
from bllpipe.engines import Callback

class Exit(Callback):
    def on_exit(self):
        print("exit", flush=True)

leave({code}, [Exit()])
"""
    done = forks.run([sys.executable, "-c", program])
    assert (done.returncode, done.stdout.strip()) == (code, printed), done.stderr


def names(*settings: str) -> list[str]:
    return [type(callback).__name__ for callback in choose_callbacks(load_config(None, settings))]


def test_a_run_has_those_that_it_asks_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert names() == ["ProgressDisplay"]
    assert names("metrics.port=0") == names(f"metrics.textfile={tmp_path}") == ["ProgressDisplay", "PrometheusExport"]
    monkeypatch.setenv("BLLPIPE_FAULT", "rank=0,point=update,action=kill")
    with pytest.raises(ConfigError, match="faults are not allowed; unset it, or set BLLPIPE_ALLOW_FAULTS=1"):
        names()
    monkeypatch.setenv("BLLPIPE_ALLOW_FAULTS", "1")
    assert names() == ["ProgressDisplay", "FaultInjection"]
    assert [callback.wraps_steps for callback in choose_callbacks(load_config(None, []))] == [False, True]
