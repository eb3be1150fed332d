"""Between the shell and the ranks: who may listen, who outlives whom, and what a signal does."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from benchmarks.family import listening
from tests.support import jobs
from tests.support.running import OWN, Running, in_forks, running, torchrun

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(sys.platform != "linux", reason="needs prctl and /proc")]
LAUNCHERS = {"own": OWN, "torchrun": torchrun(3)}
LONG = jobs.words(None, *jobs.UNHURRIED, "log.every_steps=1", "steps=100000")
LOOPBACK = "0100007F"


def exposed(job: Running, processes: list[int]) -> dict[int, set[tuple[str, int]]]:
    """Who listens at other addresses than 127.0.0.1."""
    places = {process: listening(process) for process in processes}
    assert any(places.values()), "a job without a listener would prove nothing"
    outside = {process: {place for place in found if place[0] != LOOPBACK} for process, found in places.items()}
    return {process: found for process, found in outside.items() if found}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_job_listens_on_the_loopback_alone_and_dies_with_its_launcher(launcher: str, tmp_path: Path) -> None:
    """What torchrun itself listens at is torchrun's affair; its ranks are ours."""
    with running(LAUNCHERS[launcher], tmp_path / "run", *LONG) as job:
        job.wait_for_step(3)
        assert sorted(job.ranks) == [0, 1, 2]
        assert exposed(job, job.processes if launcher == "own" else list(job.ranks.values())) == {}
        job.process.kill()
        job.wait_until_nothing_is_left()


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_that_have_hardly_begun_die_with_their_launcher(launcher: str, tmp_path: Path) -> None:
    """They once found out after minutes, when they did not reach the store; here that takes longer than the test."""
    patient = jobs.words(None, "backend.timeout_seconds=3600")
    start = in_forks(OWN) if launcher == "own" else LAUNCHERS[launcher]  # the test above has a real one
    with running(start, tmp_path / "run", *LONG, *patient) as job:
        job.wait_until(lambda: len(job.ranks) == 3)
        job.process.kill()
        job.wait_until_nothing_is_left()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_launcher_ends_all(number: signal.Signals, code: int, tmp_path: Path) -> None:
    with running(in_forks(OWN), tmp_path / "run", *LONG, "--max-restarts", "3") as job:
        job.wait_for_step(3)
        job.process.send_signal(number)
        found, said = job.end()
        assert found == code, said
        assert "Traceback" not in said
        assert "restart" not in said
        assert job.left() == []
    assert jobs.read_json(tmp_path / "run" / "status.json")["status"] == "preempted"


def test_a_second_interrupt_ends_all_at_once(tmp_path: Path) -> None:
    with running(in_forks(OWN), tmp_path / "run", *LONG) as job:
        job.wait_for_step(3)
        job.process.send_signal(signal.SIGINT)
        job.process.send_signal(signal.SIGINT)
        assert job.end()[0] == 130
        assert job.left() == []
