"""``kill -9`` at any point and a restart, by hand or by the launcher, change no bit of weights and metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import jobs
from tests.support.same_bits import metrics_without_timing, state_digest
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.ranks
SETTINGS = (
    *(*jobs.TINY, "blocks=3", "data.synthetic_images=720"),  # an epoch of 45 steps
    *("steps=60", "checkpoint.every_steps=5", "log.every_steps=7"),
)
DEEP = ("backend.ring=4", "backend.in_flight=4")  # many messages and posted receives when a rank is killed
KILLED = -9
# Each of them in a start of its own, which goes on where the one before was killed.
ONE_AFTER_ANOTHER = [
    (0, "waiting", 3),
    (1, "forward", 8),
    (3, "sent", 8),
    (1, "update", 13),
    (3, "waiting", 17),
    (0, "save", 20),
    (1, "tensors", 20),
    (3, "facts", 25),
    (2, "manifest", 25),
    (2, "rename", 30),
    (2, "committed", 30),
    (2, "evaluate", 45),
    (2, "updated", 57),
    (0, "summary", 60),
]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    jobs.in_this_process(run_dir, *SETTINGS, "engine=sequential")
    return run_dir


def check_same(run_dir: Path, straight: Path) -> None:
    assert state_digest(run_dir) == state_digest(straight)
    assert metrics_without_timing(run_dir) == metrics_without_timing(straight)
    assert jobs.read_json(run_dir / "status.json")["status"] == "completed"
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step-00000055", "step-00000060"]


def kill(rank: int, point: str, step: int, attempt: int = 0) -> str:
    return f"rank={rank},point={point},step={step},action=kill,attempt={attempt}"


def test_every_point_in_one_process(tmp_path: Path, straight: Path) -> None:
    """The whole job is killed, and started again by hand. In one process the feedback rank comes first, and the last
    block is the one that finishes a checkpoint."""
    run_dir = tmp_path / "run"
    words = jobs.words(run_dir, *SETTINGS, "engine=sequential", options=("--resume", "auto"))
    for rank, point, step in ONE_AFTER_ANOTHER:
        done = jobs.forked(words, fault=kill(rank, point, step))
        assert done.returncode == KILLED, f"{point}: {done.stderr}"
    jobs.succeed(jobs.forked(words))
    check_same(run_dir, straight)


def test_several_ranks_one_after_another_under_the_launcher(tmp_path: Path, straight: Path) -> None:
    run_dir = tmp_path / "run"
    places = [(1, "update", 12), (3, "sent", 17), (0, "tensors", 20)]
    faults = ";".join(kill(*place, attempt) for attempt, place in enumerate(places))
    launcher = jobs.started([*jobs.words(run_dir, *SETTINGS, *DEEP), "--max-restarts=9"], fault=faults)
    text, _ = launcher.communicate(timeout=2 * PATIENCE)
    assert launcher.returncode == 0, text
    assert text.count("resumes from step") == len(places), text
    check_same(run_dir, straight)
