"""A failure is answered by a restart from the newest checkpoint, but not one that would come back, nor for ever."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
import uuid
from pathlib import Path

import pytest

from bllpipe.errors import ConfigError
from bllpipe.utils import files
from bllpipe.utils.files import RunLock, json_object
from tests.support import jobs
from tests.support.running import OWN, in_forks, running, torchrun

pytestmark = [pytest.mark.ranks, pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")]
TINY = ("blocks=1", "data.name=synthetic", "data.synthetic_images=64", "data.image_size=8", "data.batch_size=8")


def launcher(name: str, num_ranks: int, restarts: int) -> tuple[str, ...]:
    option = f"--max-restarts={restarts}"
    return in_forks((*OWN, option) if name == "own" else torchrun(num_ranks, option))


def network(name: str, **settings: float) -> tuple[str, ...]:
    """A network of tests/support/networks/ranks.py."""
    return (
        *TINY,
        f"model.name=tests.support.networks.ranks:{name}",
        *(f"model.args.{k}={v}" for k, v in settings.items()),
    )


def messages(said: str) -> list[str]:
    """What bllpipe itself said."""
    return [line for line in said.splitlines() if line.startswith("bllpipe:")]


@pytest.mark.parametrize("name", ["own", "torchrun"])
def test_a_run_outlives_several_kills(name: str, tmp_path: Path) -> None:
    settings = (*jobs.UNHURRIED, "log.every_steps=1", "checkpoint.every_steps=5", "steps=40")
    straight = jobs.in_this_process(tmp_path / "straight", *settings, "engine=sequential")
    with running(launcher(name, 3, 2), tmp_path / "run", *jobs.words(None, *settings)) as job:
        for step, rank in ((6, 1), (22, 2)):
            job.wait_for_step(step)
            os.kill(job.ranks[rank], signal.SIGKILL)
        code, said = job.end()
    assert code == 0, said
    assert jobs.summary(tmp_path / "run")["state_sha256"] == straight["state_sha256"]
    restarts = [message for message in messages(said) if "restart" in message]
    assert [message.partition("; ")[2] for message in restarts] == (
        ["restart 1 of 2", "restart 2 of 2"] if name == "own" else []
    )


@pytest.mark.parametrize("name", ["own", "torchrun"])
def test_a_second_run_is_refused_while_the_first_one_restarts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 has the lock of the directory, and is the one that is killed: for seconds no process held it."""
    monkeypatch.setattr(files, "LOCK_PATIENCE_SECONDS", 0.0)
    settings = (*jobs.UNHURRIED, "blocks=1", "log.every_steps=1", "checkpoint.every_steps=5", "steps=60")
    run_dir = tmp_path / "run"

    def holder() -> object:
        return json_object((run_dir / files.LOCK_NAME).read_bytes()).get("pid")

    with running(launcher(name, 2, 1), run_dir, *jobs.words(None, *settings)) as job:
        job.wait_for_step(12)
        first = job.ranks[0]
        assert holder() == first
        os.kill(first, signal.SIGKILL)
        refused = 0
        while holder() in (first, None) or refused == 0:
            with pytest.raises(ConfigError, match="run is in use by a run that is alive: "):
                RunLock().take(run_dir)
            refused += 1
            time.sleep(0.01)
        code, said = job.end()
    assert code == 0, said
    RunLock().take(run_dir)


def test_a_run_on_two_machines_outlives_a_kill(tmp_path: Path) -> None:
    """Each torchrun counts the restarts that it has begun, and follows those of others without counting: ranks of one
    machine once took themselves for the first attempt, and those of the other for the second."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    meeting = (f"--rdzv-endpoint=localhost:{port}", f"--rdzv-id={uuid.uuid4().hex}", "--rdzv-backend=c10d")
    start = in_forks(torchrun(1, "--nnodes=2", *meeting, "--max-restarts=2"))
    settings = (*network("slow", seconds=0.5), "steps=6", "log.every_steps=1", "checkpoint.every_steps=2")
    words = jobs.words(None, *settings)
    run_dir, lo = tmp_path / "run", {"GLOO_SOCKET_IFNAME": "lo"}
    with running(start, run_dir, *words, **lo) as first, running(start, run_dir, *words, **lo) as second:
        first.wait_for_step(3)
        os.kill({**first.ranks, **second.ranks}[1], signal.SIGKILL)
        for job in (first, second):
            code, said = job.end()
            assert code == 0, said
    assert jobs.summary(run_dir)["steps"] == 6


@pytest.mark.parametrize(
    ("name", "num_ranks", "settings", "message", "code"),
    [
        ("torchrun", 3, ("blocks=2", "optimizer.learning_rate=1"), "did you mean 'optimizer.lr'", 1),
        ("torchrun", 3, ("blocks=2", "data.batch_size=5000"), "data.batch_size is 5000, but digits has only", 1),
        ("torchrun", 3, (*jobs.TINY, "optimizer.lr=1e30"), r"step \d+: .* (NaN|nan|Inf|inf)", 1),
        ("own", 3, (*jobs.TINY, "optimizer.lr=1e30"), r"step \d+: .* (NaN|nan|Inf|inf)", 5),
    ],
    ids=["key", "batch", "nan", "nan-own"],
)
def test_what_would_come_back_is_not_tried_again(
    name: str, num_ranks: int, settings: tuple[str, ...], message: str, code: int, tmp_path: Path
) -> None:
    with running(launcher(name, num_ranks, 9), tmp_path / "run", *jobs.words(None, *settings)) as job:
        found, said = job.end()
        assert found == code
        assert re.search(message, said), said
        assert len(messages(said)) == 1, said
        assert job.left() == []


@pytest.mark.parametrize(("name", "code"), [("own", 7), ("torchrun", 1)])
def test_restarts_that_come_no_further_end(name: str, code: int, tmp_path: Path) -> None:
    settings = (*network("breaking", step=1), "checkpoint.every_steps=2", "checkpoint.tries=2")
    with running(launcher(name, 2, 9), tmp_path / "run", *jobs.words(None, *settings)) as job:
        found, said = job.end()
        assert found == code, said
        assert job.left() == []
    assert said.count("ArithmeticError: this network breaks here every time\n") == 3, said
    last = messages(said)[-1]
    assert "the last 2 attempts all began at step 0 and failed before the next checkpoint" in last
    assert "the last failure was: rank 0 (block 0): ArithmeticError: this network breaks here every time" in last
    assert jobs.read_json(tmp_path / "run" / "status.json")["status"] == "failed"
