"""The job scripts in a real SLURM: they finish, are requeued, meet their time limit and go on, to the same bits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bllpipe.cli import main
from tests.slurm.cluster import Cluster, missing, running_cluster
from tests.support import jobs
from tests.support.same_bits import metrics_without_timing, state_digest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
STEPS = 300
SETTINGS = (
    *jobs.RESNET,
    "device=cpu",
    f"steps={STEPS}",
    "checkpoint.every_steps=0",
)  # nothing to go on from but a stop
# SLURM counts in minutes and looks twice in one: of two minutes the signal comes after 75 to 105 s, when all ranks run.
LATE_SIGNAL = "--signal=TERM@15"
WORDS = jobs.words(None, *SETTINGS)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    jobs.in_this_process(run_dir, *SETTINGS, "engine=sequential")
    return run_dir


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory to submit from, with all that a clone of the repository has for it."""
    path = tmp_path_factory.mktemp("checkout")
    for name in ("bllpipe", "launch"):
        (path / name).symlink_to(jobs.REPOSITORY / name)
    return path


@pytest.fixture(scope="module")
def cluster(checkout: Path) -> Iterator[Cluster]:
    if missing():
        pytest.skip(f"{', '.join(missing())} not found; make test-slurm installs SLURM and munge where it may")
    with running_cluster(checkout) as running:
        yield running


def slowly(seconds: int, every: int) -> dict[str, str]:
    """Lets the first rank sleep for so many seconds, one in every so many steps: a middle to be disturbed in."""
    slept = (f"rank=0,step={step},point=update,action=sleep,seconds=1" for step in range(0, seconds * every, every))
    return jobs.fault_variables(";".join(slept))


def stops(text: str) -> list[int]:
    """The steps at which a job says that it stopped, after which it must go on from there."""
    stopped = re.findall(r"bllpipe: stopped at step (\d+) of ", text)
    assert stopped == re.findall(r" resumes from step (\d+)", text)
    return [int(step) for step in stopped]


def check_complete(cluster: Cluster, job: str, run_dir: Path, straight: Path) -> None:
    cluster.show(job)
    print(f"undisturbed, in one process: state_sha256 {state_digest(straight)}")
    assert jobs.read_json(run_dir / "status.json")["status"] == "completed"
    assert jobs.summary(run_dir)["world_size"] == 5
    assert state_digest(run_dir) == state_digest(straight)
    assert metrics_without_timing(run_dir) == metrics_without_timing(straight)


def test_one_node_of_four_gpus(cluster: Cluster, checkout: Path, straight: Path) -> None:
    job = cluster.submit("launch/slurm_four_gpus.sh", *WORDS)
    cluster.wait_for(job, "COMPLETED")
    check_complete(cluster, job, checkout / f"runs/slurm-{job}", straight)
    assert "state_sha256" in cluster.output(job)


def test_two_nodes(cluster: Cluster, checkout: Path, straight: Path) -> None:
    job = cluster.submit("launch/slurm_nodes.sh", *WORDS, "--run-dir", "runs/on two nodes")
    cluster.wait_for(job, "COMPLETED")
    check_complete(cluster, job, checkout / "runs/on two nodes", straight)
    assert cluster.fact(job, "NodeList") == "n[1-2]"


def test_replicas_over_two_nodes(cluster: Cluster, checkout: Path, tmp_path: Path) -> None:
    """Two replicas of block 0 and one of block 1; then the run goes on with the replicas that five ranks have, to the
    bits of one process. Who is on which node is decided by counted bytes."""
    settings = (*jobs.RESNET, "device=cpu", "steps=40", "blocks=2", "shards=2", "checkpoint.every_steps=0")
    jobs.in_this_process(tmp_path / "one", *settings, "engine=sequential")
    words, run_dir = jobs.words(None, *settings), checkout / "runs/replicas"
    options = ("--run-dir", "runs/replicas")
    job = cluster.submit("launch/slurm_nodes.sh", *words, "--set", "replicas=[2, 1]", "--set", "stop_at=20", *options)
    cluster.wait_for(job, "COMPLETED")
    then = cluster.submit("launch/slurm_nodes.sh", *words, "--set", "replicas=auto", "--ranks", "5", *options)
    cluster.wait_for(then, "COMPLETED")
    for each in (job, then):
        cluster.show(each)
        assert cluster.fact(each, "NodeList") == "n[1-2]"
        assert " a step between nodes, the other order " in cluster.output(each)
    assert "replicas [2, 2] for 5 ranks, and 2 shards a batch" in cluster.output(then)
    assert jobs.summary(run_dir)["world_size"] == 5
    print(f"undisturbed, in one process: state_sha256 {state_digest(tmp_path / 'one')}")
    assert state_digest(run_dir) == state_digest(tmp_path / "one")


def test_requeued_in_the_middle(cluster: Cluster, checkout: Path, straight: Path) -> None:
    job = cluster.submit("launch/slurm_one_node.sh", *WORDS, **slowly(20, every=10))
    run_dir = checkout / f"runs/slurm-{job}"
    cluster.wait_until(lambda: jobs.steps_done(run_dir) >= 20, 120, while_runs=job)
    cluster.run("scontrol", "requeue", job)
    cluster.wait_through_requeues(job, 200)
    assert [20 <= step < STEPS for step in stops(cluster.output(job))] == [True]
    assert cluster.fact(job, "Restarts") == "1"
    check_complete(cluster, job, run_dir, straight)


def test_preempted_by_a_more_urgent_job(cluster: Cluster, checkout: Path, straight: Path) -> None:
    job = cluster.submit("launch/slurm_one_node.sh", *WORDS, **slowly(20, every=10))
    run_dir = checkout / f"runs/slurm-{job}"
    cluster.wait_until(lambda: jobs.steps_done(run_dir) >= 20, 120, while_runs=job)
    cluster.run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
    cluster.wait_through_requeues(job, 300)
    assert [20 <= step < STEPS for step in stops(cluster.output(job))] == [True]
    check_complete(cluster, job, run_dir, straight)


def test_an_array_goes_on_after_the_time_limit(cluster: Cluster, checkout: Path, straight: Path) -> None:
    options = ("--array=1-9%1", "--time=2", LATE_SIGNAL)
    job = cluster.submit("launch/slurm_array.sh", *WORDS, options=options, **slowly(120, every=2))
    cluster.wait_for(f"{job}_1", "COMPLETED", 200)
    assert "the next element goes on" in cluster.output(job)
    cluster.wait_until(lambda: not cluster.ask("squeue", "--noheader", f"--jobs={job}").stdout, 400)
    check_complete(cluster, job, checkout / f"runs/slurm-{job}", straight)
    assert len(list(checkout.glob(f"bllpipe-{job}-*.out"))) == len(stops(cluster.output(job))) + 1 < 9


def test_a_written_script_requeues_itself_at_the_time_limit(cluster: Cluster, checkout: Path, straight: Path) -> None:
    options = ["--nodes", "2", "--gpus-per-node", "3", "--time", "00:02:00", "--partition", "main"]
    assert main(["slurm", *WORDS, *options, "--out", str(checkout / "job.sh")]) == 0
    job = cluster.submit("job.sh", options=[LATE_SIGNAL], **slowly(120, every=2))
    cluster.wait_through_requeues(job, 400)
    assert len(stops(cluster.output(job))) == int(cluster.fact(job, "Restarts")) >= 1
    check_complete(cluster, job, checkout / f"runs/slurm-{job}", straight)
