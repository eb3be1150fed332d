"""A signal to anybody stops all ranks behind the same step, with a checkpoint from which the run goes on bit by bit."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from bllpipe.checkpoint import Checkpoint, open_checkpoint
from tests.support import jobs
from tests.support.forks import ForkedPython
from tests.support.same_bits import metrics_without_timing
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.ranks
STEPS, EVERY = 400, 10
SETTINGS = (*jobs.UNHURRIED, f"steps={STEPS}", "checkpoint.every_steps=0")
IN_TURN = "engine=sequential"
DEEP = ("backend.ring=4", "backend.in_flight=4")  # receives are posted for rounds that never come


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run is that nobody disturbs, as far as it was needed."""
    return tmp_path_factory.mktemp("straight") / "run"


def straight_at(straight: Path, step: int) -> Checkpoint:
    """The checkpoint of ``step``, a multiple of EVERY, in the undisturbed run, which goes as far as that."""
    place = straight / "checkpoints" / f"step-{step:08}"
    if not place.exists():
        every = (f"checkpoint.every_steps={EVERY}", f"checkpoint.keep={STEPS}", f"stop_at={step}")
        jobs.in_this_process(straight, *SETTINGS, *every, IN_TURN, options=("--resume", "auto"))
    return open_checkpoint(place)


def stop(launcher: ForkedPython, send: Callable[[dict[int, psutil.Process]], None]) -> str:
    """What the job printed until its last process had ended, after ``send``."""
    ranks = jobs.rank_processes(launcher)
    send(ranks)
    text, _ = launcher.communicate(timeout=PATIENCE)
    _, alive = psutil.wait_procs(list(ranks.values()), timeout=PATIENCE)
    assert not alive
    return text


def is_idle(process: psutil.Process) -> bool:
    """Whether it computes nothing for a while: it waits for a message."""
    before = process.cpu_times()
    threading.Event().wait(0.5)
    after = process.cpu_times()
    return after.user - before.user < 0.1


def check_stopped(run_dir: Path) -> None:
    status = jobs.read_json(run_dir / "status.json")
    assert status["status"] == "preempted", status
    assert 0 < status["step"] < STEPS
    assert (run_dir / "checkpoints" / f"step-{status['step']:08}" / "manifest.json").exists()


def go_on(run_dir: Path, ranks: int = 0) -> None:
    """Ten steps or more, up to one of which the undisturbed run has a checkpoint; here and block after block, which
    changes no bit, or as so many ``ranks``."""
    last = min(STEPS, -(-jobs.read_json(run_dir / "status.json")["step"] // EVERY) * EVERY + EVERY)
    options = ("--resume", "auto", "--accept", "engine")
    if ranks:
        words = jobs.words(run_dir, *SETTINGS, f"stop_at={last}", options=options)
        jobs.succeed(jobs.ranks(ranks, words))
    else:
        jobs.in_this_process(run_dir, *SETTINGS, f"stop_at={last}", IN_TURN, options=options)


def check_same(run_dir: Path, straight: Path) -> None:
    """All that is in the last checkpoint, and every line of metrics up to it."""
    found = open_checkpoint(run_dir)
    ours, theirs = found.tensors(), straight_at(straight, found.step).tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    until = [line for line in metrics_without_timing(straight) if line["step"] <= found.step]
    assert metrics_without_timing(run_dir) == until


@pytest.mark.parametrize(
    ("name", "number"),
    [("launcher", signal.SIGTERM), ("rank 1", signal.SIGTERM), ("all", signal.SIGINT)],
    ids=["term-launcher", "term-one", "int-all"],
)
def test_a_signal_stops_all_ranks_at_one_step(
    tmp_path: Path, straight: Path, name: str, number: signal.Signals
) -> None:
    run_dir = tmp_path / "run"
    launcher = jobs.started(jobs.words(run_dir, *SETTINGS), torchrun=3 if name == "launcher" else 0)
    wait_until(lambda: jobs.steps_done(run_dir) >= 20)

    def send(ranks: dict[int, psutil.Process]) -> None:
        targets = {"launcher": [launcher.pid], "rank 1": [ranks[1].pid]}
        for pid in targets.get(name, [launcher.pid, *(process.pid for process in ranks.values())]):
            os.kill(pid, number)

    text = stop(launcher, send)
    assert "stopping with a checkpoint" in text
    assert launcher.returncode == 0 or name != "rank 1", text
    check_stopped(run_dir)
    go_on(run_dir, ranks=3 if name == "rank 1" else 0)
    check_same(run_dir, straight)


def test_a_signal_while_everybody_waits_for_a_message(tmp_path: Path, straight: Path) -> None:
    """Block 1 stands still in step 30, and the others wait for it until the signal has come."""
    run_dir = tmp_path / "run"
    launcher = jobs.started(jobs.words(run_dir, *SETTINGS, *DEEP), fault="rank=1,step=30,point=update,action=stop")
    wait_until(lambda: jobs.steps_done(run_dir) >= 30)
    wait_until(lambda: jobs.rank_processes(launcher)[1].status() == psutil.STATUS_STOPPED)

    def send(ranks: dict[int, psutil.Process]) -> None:
        wait_until(lambda: is_idle(ranks[0]))
        ranks[0].terminate()
        ranks[1].resume()

    text = stop(launcher, send)
    assert launcher.returncode == 0, text
    assert 30 < jobs.read_json(run_dir / "status.json")["step"] < 45
    check_stopped(run_dir)
    go_on(run_dir)
    check_same(run_dir, straight)


def test_a_run_without_checkpoints_stops_at_one_step_too(tmp_path: Path) -> None:
    """The ranks end in order, with a lag's worth of statistics on their way, and leave nothing to go on from."""
    run_dir = tmp_path / "run"
    never = ("checkpoint.every_steps=never", "evaluate.every_epochs=never", "feedback.lag=3")
    launcher = jobs.started(jobs.words(run_dir, *SETTINGS, *never))
    wait_until(lambda: jobs.steps_done(run_dir) >= 20)
    text = stop(launcher, lambda ranks: ranks[1].terminate())
    assert launcher.returncode == 0 and "stopping without a checkpoint" in text, text
    status = jobs.read_json(run_dir / "status.json")
    assert status["status"] == "preempted" and 0 < status["step"] < STEPS, status
    assert jobs.summary(run_dir)["steps"] == status["step"]
    assert not list((run_dir / "checkpoints").iterdir())


def test_ranks_that_never_test_and_never_save_end_with_the_same_bits(tmp_path: Path) -> None:
    settings = (*jobs.TINY, "steps=12", "feedback.lag=3")
    never = ("checkpoint.every_steps=never", "evaluate.every_epochs=never")
    jobs.succeed(jobs.ranks(3, jobs.words(tmp_path / "ranks", *settings, *never)))
    here = jobs.in_this_process(tmp_path / "here", *settings, IN_TURN)
    found = jobs.summary(tmp_path / "ranks")
    assert found["state_sha256"] == here["state_sha256"]
    assert (found["test_accuracy"], found["block_accuracy"]) == (None, [])
    assert not list((tmp_path / "ranks" / "checkpoints").iterdir())


@pytest.mark.parametrize("engine", ["ddp", "1f1b"])
def test_synchronous_engines_that_never_test_and_never_save(tmp_path: Path, engine: str) -> None:
    settings = (*jobs.TINY, f"engine={engine}", "method=bp", "steps=12")
    never = ("checkpoint.every_steps=never", "evaluate.every_epochs=never")
    jobs.succeed(jobs.ranks(2, jobs.words(tmp_path / "run", *settings, *never)))
    found = jobs.summary(tmp_path / "run")
    assert found["steps"] == 12 and (found["test_accuracy"], found["block_accuracy"]) == (None, [])
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("engine", "number"), [("threads", signal.SIGTERM), ("threads", signal.SIGINT), ("streams", signal.SIGTERM)]
)
def test_a_process_of_its_own_stops_too(tmp_path: Path, straight: Path, engine: str, number: signal.Signals) -> None:
    run_dir = tmp_path / "run"
    fault = f"rank=1,step=50,point=forward,action={'term' if number == signal.SIGTERM else 'int'}"
    done = jobs.forked(jobs.words(run_dir, *SETTINGS, f"engine={engine}"), fault=fault)
    assert done.returncode == 128 + number, done.stderr
    check_stopped(run_dir)
    go_on(run_dir)
    check_same(run_dir, straight)
