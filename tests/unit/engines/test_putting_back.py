"""A process that trains again and again has its memory, its threads and its switches back after every run."""

from __future__ import annotations

import gc
import socket
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bllpipe import launch
from bllpipe.config import load_config
from bllpipe.engines import build
from bllpipe.engines.devices import put_back
from bllpipe.learn import block as block_module
from bllpipe.learn.block import Block
from bllpipe.learn.cuda_graphs import CapturedStep
from bllpipe.utils.process import freeze_garbage
from bllpipe.utils.tensors import torch_defaults
from tests.support import jobs, quick
from tests.support.tape import TapeGraphs
from tests.unit.learn.test_cuda_graphs import images, make, step_of

SETTINGS = (*jobs.TINY, "steps=4", "evaluate.every_epochs=never")
DIVERGES = ("optimizer.lr=1e30", "schedule.name=constant", "steps=40")  # in NaN
ENGINES = ["sequential", "threads", "streams", "single"]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Block]]:
    """The blocks of all runs of a test, without holding them."""
    found: list[weakref.ref[Block]] = []
    make_block = block_module.make_block

    def noted(*given: Any) -> Block:
        block = make_block(*given)
        found.append(weakref.ref(block))
        return block

    monkeypatch.setattr(build, "make_block", noted)
    return found


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_frozen() -> Iterator[None]:
    """As in a script; for other tests tests/conftest.py has frozen what there is."""
    quick.thaw()
    yield
    quick.freeze()


def words(run_dir: Path, engine: str, *settings: str) -> list[str]:
    return jobs.words(run_dir, *SETTINGS, f"engine={engine}", *(["method=bp"] if engine == "single" else []), *settings)


@pytest.mark.parametrize("fails", [False, True], ids=["well", "fails"])
@pytest.mark.parametrize("engine", ENGINES)
def test_no_block_outlives_its_run(
    tmp_path: Path, made: list[weakref.ref[Block]], engine: str, fails: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """All were kept once, for ever: frozen garbage is never looked at again. To look at all of it takes long here."""
    before = threading.active_count()
    for number in range(2 if engine == "sequential" else 1):
        code = launch.main(words(tmp_path / f"{number}", engine, *(DIVERGES if fails else ())))
        assert code == (5 if fails else 0), capsys.readouterr().err
        gc.collect()
        assert made and [ref() for ref in made] == [None] * len(made)
        assert gc.get_freeze_count() == 0
    assert threading.active_count() <= before


@pytest.mark.parametrize("engine", ["sequential", "threads"])
def test_a_run_that_fails_before_it_begins(tmp_path: Path, made: list[weakref.ref[Block]], engine: str) -> None:
    assert launch.main(words(tmp_path / "run", engine, "blocks=100")) == 2
    gc.collect()
    assert not made and gc.get_freeze_count() == 0


@pytest.fixture
def switches() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False


@pytest.mark.parametrize("error", [None, ValueError("something")])
def test_switches_are_as_before(switches: None, error: Exception | None) -> None:
    def look() -> tuple[Any, ...]:
        cudnn = torch.backends.cudnn
        algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        return torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic, *algorithms

    before = look()
    try:
        with torch_defaults():
            torch.set_num_threads(before[0] + 1)
            torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = True
            torch.use_deterministic_algorithms(True, warn_only=True)
            assert look() == (before[0] + 1, True, True, True, True)
            if error is not None:
                raise error
    except ValueError as raised:
        assert raised is error
    assert look() == before


def test_a_script_keeps_what_it_has_frozen_itself() -> None:
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with put_back(load_config(None)):
            more = [[] for _ in range(1000)]  # type: ignore[var-annotated]  # of nothing
            freeze_garbage()
            assert len(more) == 1000 and gc.get_freeze_count() <= count
        assert 0 < gc.get_freeze_count() <= count
    finally:
        gc.unfreeze()


def test_a_captured_block_is_freed_with_its_graphs() -> None:
    """Its methods are those of the captured step, which refers to the block: a circle."""
    block = make(load_config(None))
    CapturedStep(block, TapeGraphs())
    for step in range(6):
        step_of(block, images(step), step)
    gone, parameter = weakref.ref(block), weakref.ref(next(iter(block.learner.parameters.values())))
    del block
    gc.collect()
    assert gone() is None and parameter() is None


def test_a_run_that_fails_gives_its_port_back(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for number in range(2):
        metrics = (f"metrics.port={port}", "blocks=1")
        assert launch.main(words(tmp_path / f"{number}", "sequential", *DIVERGES, *metrics)) == 5
    with socket.create_server(("127.0.0.1", port)):
        pass
