"""Which rank holds which replica: counted for the ranks that are there, and over nodes. The bits are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bllpipe.config.loader import load_stored_config
from tests.support import jobs
from tests.support.same_bits import metrics_without_timing, state_digest

pytestmark = pytest.mark.ranks
TINY = (*jobs.TINY, "data.batch_size=32", "steps=8", "log.every_steps=4", "checkpoint.every_steps=4")
RESUMED = ("--resume", "auto")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process in two shards."""
    path = tmp_path_factory.mktemp("seats") / "sequential"
    jobs.in_this_process(path, "engine=sequential", "shards=2", *TINY)
    return path


def held(run_dir: Path) -> tuple[Any, ...]:
    """The keys of the run that say who holds what."""
    config = load_stored_config(str(run_dir / "config.yaml"))
    return config.replicas, config.shards, config.placement


def places(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics without ranks and roles."""
    keys = ("rank", "role")
    return [{key: line[key] for key in line if key not in keys} for line in metrics_without_timing(run_dir)]


def test_auto_replicas_keep_the_shards_of_the_run(tmp_path: Path, reference: Path) -> None:
    """On five ranks, then on three, then in one process."""
    run_dir = tmp_path / "run"
    first = jobs.succeed(jobs.ranks(5, jobs.words(run_dir, *TINY, "replicas=auto", "stop_at=3")))
    assert "replicas [2, 2] for 5 ranks, and 2 shards a batch, on which the results depend" in first.stdout
    assert held(run_dir) == ([2, 2], 2, "block")
    words = jobs.words(run_dir, *TINY, "replicas=auto", "stop_at=6", options=RESUMED)
    then = jobs.succeed(jobs.ranks(3, words))
    assert "replicas [1, 1] for 3 ranks, and 2 shards a batch" in then.stdout
    assert held(run_dir) == ([1, 1], 2, "block")
    jobs.in_this_process(run_dir, "engine=sequential", *TINY, "replicas=auto", options=RESUMED)
    assert state_digest(run_dir) == state_digest(reference)
    assert places(run_dir) == places(reference)


def test_our_own_launcher_starts_the_ranks_that_are_asked_for(tmp_path: Path, reference: Path) -> None:
    run_dir = tmp_path / "run"
    jobs.succeed(jobs.forked(jobs.words(run_dir, *TINY, "replicas=auto", "shards=2", options=("--ranks", "4"))))
    assert jobs.summary(run_dir)["world_size"] == 4 and sum(held(run_dir)[0]) == 3
    assert state_digest(run_dir) == state_digest(reference)


def test_ranks_that_are_too_many_are_refused_by_rank_0(tmp_path: Path) -> None:
    refused = jobs.ranks(6, jobs.words(tmp_path / "run", *TINY, "replicas=auto", "shards=2"))
    assert refused.returncode == 2
    assert "replicas is auto for 5 ranks and 2 blocks, but shards is 2" in refused.stderr
    assert refused.stderr.count("bllpipe:") == 1, "once for all ranks"
    assert not (tmp_path / "run").exists()


def test_pipelines_side_by_side_have_the_same_bits(tmp_path: Path, reference: Path) -> None:
    """Uneven ones, resumed in the other order."""
    run_dir, settings = tmp_path / "run", (*TINY, "shards=2")
    pipeline = ("replicas=[2, 1]", "placement=pipeline")
    jobs.succeed(jobs.ranks(4, jobs.words(run_dir, *settings, *pipeline, "stop_at=4")))
    roles = ["block 0 replica 0", "block 1", "block 0 replica 1", "feedback"]
    assert jobs.summary(run_dir)["roles"] == roles
    assert {line["rank"]: line["actor"] for line in metrics_without_timing(run_dir)}[1] == "block 1"
    jobs.succeed(
        jobs.ranks(5, jobs.words(run_dir, *settings, "replicas=2", "placement=block", "stop_at=6", options=RESUMED))
    )
    jobs.succeed(jobs.ranks(5, jobs.words(run_dir, *settings, "replicas=2", *pipeline[1:], options=RESUMED)))
    assert state_digest(run_dir) == state_digest(reference)
    assert places(run_dir) == places(reference)


def test_auto_placement_counts_the_bytes_between_nodes(tmp_path: Path) -> None:
    """Two nodes of two and three ranks. Alphas of width 2 are small beside the gradients: a block on each node."""
    run_dir, settings = tmp_path / "run", (*TINY, "model.name=resnet18", "model.width=2", "steps=4")
    jobs.in_this_process(tmp_path / "alone", "engine=sequential", "shards=2", *settings)
    words = jobs.words(run_dir, *settings, "replicas=auto")
    done = jobs.succeed(jobs.ranks(5, words, nodes=(2, 3), GLOO_SOCKET_IFNAME="lo"))
    assert "placement block: " in done.stdout and "a step between nodes, the other order " in done.stdout
    assert held(run_dir) == ([2, 2], 2, "block")
    assert state_digest(run_dir) == state_digest(tmp_path / "alone")


def test_a_replica_of_a_pipeline_that_was_killed_costs_no_bit(tmp_path: Path, reference: Path) -> None:
    run_dir, settings = tmp_path / "run", (*TINY, "shards=2", "replicas=2", "placement=pipeline")
    fault = "rank=2,step=6,point=sum,action=kill"  # the second replica of block 0
    assert jobs.ranks(5, jobs.words(run_dir, *settings), fault=fault).returncode != 0
    jobs.succeed(jobs.ranks(5, jobs.words(run_dir, *settings, options=RESUMED)))
    assert state_digest(run_dir) == state_digest(reference)
    assert places(run_dir) == places(reference)
