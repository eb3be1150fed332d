"""The server that ranks are forked from: what it starts, what it survives, and what its end means."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from bllpipe.engines.rank_processes import RankProcesses
from tests.support import jobs
from tests.support.running import OWN, Running, in_forks, running
from tests.support.waiting import PATIENCE, default_action, wait_until

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(sys.platform != "linux", reason="needs prctl and /proc")]
SETTINGS = (*jobs.TINY, "blocks=1", "steps=6")


def server_of(job: Running) -> psutil.Process:
    (server,) = psutil.Process(job.process.pid).children()
    return server


@contextmanager
def ready(words: list[str], engine: str = "ranks", can_fork: bool = True) -> Iterator[RankProcesses]:
    with closing(RankProcesses(2, words, engine, cpu_threads=1, can_fork=can_fork)) as processes:
        wait_until(lambda: processes.is_ready(0.1))
        yield processes


IMPORTS = """
import os, torch

def refuse(*arguments):
    raise AssertionError("a process that has asked for GPUs cannot be forked by those who use them")

torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = refuse
from bllpipe import launch
for name in launch.SPREAD:
    launch.engine(name)
assert not torch.cuda.is_initialized() and len(os.listdir("/proc/self/task")) == 1
"""


def test_what_the_server_imports_starts_no_thread_and_asks_for_no_gpu() -> None:
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", IMPORTS], env=variables, timeout=PATIENCE).returncode == 0


@pytest.mark.parametrize("can_fork", [True, False], ids=["fork", "spawn"])
def test_ranks_are_started_again_and_again(can_fork: bool, tmp_path: Path) -> None:
    straight = jobs.in_this_process(tmp_path / "here", *SETTINGS, "engine=sequential")
    words = jobs.words(tmp_path / "run", *SETTINGS, "checkpoint.every_steps=3", options=("--resume", "auto"))
    with ready([*words, "--set", "stop_at=3"], can_fork=can_fork) as processes:
        assert processes.status() is None, "no rank has agreed on a directory"
        assert processes.run(attempt=0) == {} and processes.status() == "preempted"
        assert processes.processes() == set()
        assert processes.run(attempt=1) == {}, "it is where it should stop"
    with ready(words, can_fork=can_fork) as processes:
        assert processes.run(attempt=0) == {} and processes.status() == "completed"
    assert jobs.summary(tmp_path / "run")["state_sha256"] == straight["state_sha256"]


def test_a_rank_leads_its_process_group_when_the_launcher_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal to the group of a rank that had just been forked was lost once: its fork was slower."""
    slow_forks = "import os, time\nos.register_at_fork(after_in_child=lambda: time.sleep(0.5))\n"
    (tmp_path / "sitecustomize.py").write_text(slow_forks)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    words = jobs.words(tmp_path / "run", *jobs.UNHURRIED, "blocks=1", "steps=100000")
    with ready(words) as processes, ThreadPoolExecutor(1) as other:
        run = other.submit(processes.run, 0)
        wait_until(processes.processes)
        ranks = processes.processes()
        groups = {os.getpgid(rank) for rank in ranks}
        for group in groups:
            os.killpg(group, signal.SIGKILL)
        run.result(PATIENCE)
    assert groups == ranks


def test_a_server_that_cannot_import_is_a_failure_of_all_ranks() -> None:
    with ready([], engine="none-of-ours") as processes:
        assert processes.run(attempt=0) == {0: 1, 1: 1}


def test_ranks_without_their_server_end_and_are_started_again(tmp_path: Path) -> None:
    settings = (*jobs.UNHURRIED, "log.every_steps=1", "checkpoint.every_steps=5", "steps=40")
    straight = jobs.in_this_process(tmp_path / "straight", *settings, "engine=sequential")
    with running(in_forks((*OWN, "--max-restarts=1")), tmp_path / "run", *jobs.words(None, *settings)) as job:
        job.wait_for_step(12)
        server_of(job).kill()
        code, said = job.end()
        assert code == 0, said
        assert "rank 0 (block 0) was killed by signal 9 (Killed); restart 1 of 1" in said
        assert job.left() == []
    assert jobs.summary(tmp_path / "run")["state_sha256"] == straight["state_sha256"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_every_process_of_a_job_is_an_agreed_stop(number: signal.Signals, tmp_path: Path) -> None:
    """As a batch system sends it: the server must not end before the ranks, which would end with it."""
    words = jobs.words(None, *jobs.UNHURRIED, "log.every_steps=1", "steps=100000")
    start = OWN if number == signal.SIGHUP else in_forks(OWN)  # that under nohup ignore SIGHUP
    with default_action(number), running(start, tmp_path / "run", *words) as job:
        job.wait_for_step(3)
        for process in job.processes:
            os.kill(process, number)
        code, said = job.end()
        assert code == 128 + number, said
        assert job.left() == []
    assert jobs.read_json(tmp_path / "run" / "status.json")["status"] == "preempted", said


def test_ranks_have_names_and_sessions_of_their_own(tmp_path: Path) -> None:
    words = jobs.words(None, *jobs.UNHURRIED, "blocks=1", "log.every_steps=1", "steps=100000")
    with running(OWN, tmp_path / "run", *words) as job:
        job.wait_for_step(2)
        server = server_of(job)
        assert sorted(rank.name() for rank in server.children()) == ["bllpipe rank 0", "bllpipe rank 1"]
        sessions = {os.getsid(process) for process in job.processes}
        assert {server.pid, *job.ranks.values()} < sessions and len(sessions) == 4
        server.suspend()
        job.process.kill()
        server.resume()
        job.wait_until_nothing_is_left()
