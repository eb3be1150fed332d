"""Shards and replicas: the same bits whoever computes them, also after a resume with others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support import jobs
from tests.support.same_bits import metrics_without_timing, state_digest

pytestmark = pytest.mark.ranks
TINY = (
    *(*jobs.UNHURRIED, "model.args.seconds=0.01", "data.batch_size=32"),
    *("steps=8", "feedback.lag=2", "log.every_steps=4"),
)
SHARDS = (*TINY, "shards=4", "evaluate.ensemble=true", "checkpoint.every_steps=4")
REPLICAS = ([2, 1], [1, 3], [3, 2], [4, 4])


def in_one_process(run_dir: Path, *settings: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    return jobs.in_this_process(run_dir, "engine=sequential", *settings, options=options)


def in_replicas(
    run_dir: Path, replicas: list[int], *settings: str, options: tuple[str, ...] = (), feedback_ranks: int = 1
) -> dict[str, Any]:
    """A run with so many replicas of its blocks."""
    settings = (*settings, f"replicas={replicas}", f"feedback.ranks={feedback_ranks}")
    jobs.succeed(jobs.ranks(sum(replicas) + feedback_ranks, jobs.words(run_dir, *settings, options=options)))
    return jobs.summary(run_dir)


def places(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics without ranks and roles, which depend on the number of replicas."""
    return [
        {key: value for key, value in line.items() if key not in ("rank", "role")}
        for line in metrics_without_timing(run_dir)
    ]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    path = tmp_path_factory.mktemp("replicas") / "sequential"
    in_one_process(path, *SHARDS)
    return path


def test_threads_and_ranks_have_the_bits_of_one_process(tmp_path: Path, reference: Path) -> None:
    jobs.in_this_process(tmp_path / "threads", "engine=threads", *SHARDS)
    in_replicas(tmp_path / "ranks", [1, 1], *SHARDS)
    assert state_digest(tmp_path / "threads") == state_digest(tmp_path / "ranks") == state_digest(reference)


@pytest.mark.parametrize("replicas", REPLICAS, ids=str)
def test_replicas_change_neither_bits_nor_metrics(tmp_path: Path, reference: Path, replicas: list[int]) -> None:
    run_dir = tmp_path / "run"
    summary = in_replicas(run_dir, replicas, *SHARDS)
    assert state_digest(run_dir) == state_digest(reference)
    assert places(run_dir) == places(reference), "one line a block"
    times = [json.loads(line) for line in (run_dir / "replicas.jsonl").read_text().splitlines()]
    others = {f"block {block} replica {number}" for block, end in enumerate(replicas) for number in range(1, end)}
    assert {line["actor"] for line in times} == others and len(times) == 2 * len(others), "a line every four steps"
    assert summary["world_size"] == sum(replicas) + 1
    parts = {path.name for path in (run_dir / "checkpoints" / "step-00000008").iterdir()}
    assert parts == {path.name for path in (reference / "checkpoints" / "step-00000008").iterdir()}


def test_other_settings_have_the_same_bits_too(tmp_path: Path) -> None:
    """Buffers of an objective, BatchNorm in a head, clipping, bf16, and images that every replica augments itself."""
    settings = (
        *("steps=4", "shards=6", "data.batch_size=48", "optimizer.name=adamw", "optimizer.clip_norm=0.5"),
        *("objective.family=gaussian_learned", "objective.head=conv", "feedback.update=sgd", "feedback.layers=2"),
        *("precision.compute=bf16", "precision.wire=bf16", "data.augment.flip=true", "data.augment.rotation=20"),
    )
    expected = in_one_process(tmp_path / "one", *TINY, *settings)["state_sha256"]
    assert in_replicas(tmp_path / "many", [4, 3], *TINY, *settings)["state_sha256"] == expected


def test_messages_in_eight_bits_have_the_same_bits_everywhere(tmp_path: Path, reference: Path) -> None:
    """Their scales are those of a shard, which no number of replicas and no engine changes."""
    settings = (*SHARDS, "precision.wire=int8")
    in_one_process(tmp_path / "one", *settings)
    jobs.in_this_process(tmp_path / "threads", "engine=threads", *settings)
    in_replicas(tmp_path / "run", [3, 2], *settings, "stop_at=4")
    in_replicas(tmp_path / "run", [1, 2], *settings, options=("--resume", "auto"))
    digests = {state_digest(tmp_path / name) for name in ("one", "threads", "run")}
    assert len(digests) == 1 and digests != {state_digest(reference)}
    assert places(tmp_path / "run") == places(tmp_path / "one")
    refused = jobs.forked(jobs.words(tmp_path / "one", *SHARDS, "engine=sequential", options=("--resume", "auto")))
    assert refused.returncode == 2
    assert 'precision.wire: "int8" then, "fp32" now' in refused.stderr


@pytest.mark.parametrize(("first", "then"), [([2, 1], [1, 2]), ([1, 2], [4, 4])], ids=str)
def test_a_run_is_resumed_with_other_replicas_to_the_same_bits(
    tmp_path: Path, reference: Path, first: list[int], then: list[int]
) -> None:
    run_dir = tmp_path / "run"
    in_replicas(run_dir, first, *SHARDS, "stop_at=4")
    in_replicas(run_dir, then, *SHARDS, options=("--resume", "auto"))
    assert state_digest(run_dir) == state_digest(reference)
    assert places(run_dir) == places(reference)


def test_a_run_of_replicas_is_resumed_in_one_process(tmp_path: Path, reference: Path) -> None:
    run_dir = tmp_path / "run"
    in_replicas(run_dir, [2, 2], *SHARDS, "stop_at=4")
    in_one_process(run_dir, *SHARDS, options=("--resume", "auto"))
    assert state_digest(run_dir) == state_digest(reference)


def test_the_all_reduce_of_the_backend_repeats_its_bits_for_the_same_replicas(tmp_path: Path, reference: Path) -> None:
    settings = (*SHARDS, "reduce=native")
    digests = {in_replicas(tmp_path / str(n), [3, 2], *settings)["state_sha256"] for n in range(2)}
    assert len(digests) == 1
    in_replicas(tmp_path / "one", [1, 1], *settings)
    assert state_digest(tmp_path / "one") == state_digest(reference), "one replica has nothing to add up"


def test_norm_sync_has_the_losses_of_one_process_up_to_rounding(tmp_path: Path) -> None:
    settings = (*TINY, "steps=4", "optimizer.lr=0.001", "norm=sync", "shards=4", "objective.head=conv")
    in_one_process(tmp_path / "one", *settings)
    in_replicas(tmp_path / "many", [3, 2], *settings)
    one, many = ([line["loss"] for line in places(tmp_path / name) if "loss" in line] for name in ("one", "many"))
    assert many == pytest.approx(one, rel=1e-3), "float32"
    assert len(one) == 4, "a line of the training and one of the test for each block"


def test_one_shard_is_not_two(tmp_path: Path, reference: Path) -> None:
    """Or the other tests would prove nothing."""
    in_one_process(tmp_path / "one", *SHARDS, "shards=1")
    assert state_digest(tmp_path / "one") != state_digest(reference)
    in_one_process(tmp_path / "sync", *SHARDS, "norm=sync")
    assert state_digest(tmp_path / "sync") == state_digest(tmp_path / "one")


def test_another_number_of_shards_is_refused_on_resume(tmp_path: Path, reference: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(reference, run_dir)
    words = jobs.words(run_dir, *SHARDS, "engine=sequential", "shards=2", options=("--resume", "auto"))
    refused = jobs.forked(words)
    assert refused.returncode == 2
    assert "shards: 4 then, 2 now" in refused.stderr


def test_a_whole_network_learns_from_shards_too(tmp_path: Path) -> None:
    settings = ("engine=single", "method=bp", "steps=2", "shards=4")
    assert jobs.in_this_process(tmp_path / "bp", *TINY, *settings)["steps"] == 2


FAULTS = [
    ("rank=0,step=5,point=sum,action=kill", [2, 1], [1, 2]),
    ("rank=1,step=6,point=sum,action=kill", [2, 1], [4, 4]),
    ("rank=2,step=5,point=forward,action=kill", [2, 1], [1, 2]),
    ("rank=0,step=4,point=tensors,action=kill", [2, 1], [1, 1]),
    ("rank=3,step=6,point=sent,action=kill", [1, 2], [2, 1]),
]


@pytest.mark.parametrize(("fault", "first", "then"), FAULTS, ids=str)
def test_a_replica_that_was_killed_costs_no_bit(
    tmp_path: Path, reference: Path, fault: str, first: list[int], then: list[int]
) -> None:
    run_dir = tmp_path / "run"
    words = jobs.words(run_dir, *SHARDS, f"replicas={first}")
    assert jobs.ranks(sum(first) + 1, words, fault=fault).returncode != 0
    in_replicas(run_dir, then, *SHARDS, options=("--resume", "auto"))
    assert state_digest(run_dir) == state_digest(reference)
    assert places(run_dir) == places(reference)


def test_two_feedback_ranks_have_the_bits_of_one(tmp_path: Path, reference: Path) -> None:
    run_dir = tmp_path / "run"
    summary = in_replicas(run_dir, [2, 1], *SHARDS, feedback_ranks=2)
    assert state_digest(run_dir) == state_digest(reference)
    assert places(run_dir) == places(reference), "one line a block"
    assert summary["roles"][3:] == ["feedback 0", "feedback 1"]
    lanes = {line["rank"]: line["actor"] for line in metrics_without_timing(run_dir) if line["rank"] > 2}
    assert lanes == {3: "lane 0", 4: "lane 1"}
    parts = [name for name in ("rank-2.json", "rank-3.json") for _ in run_dir.glob(f"checkpoints/*8/{name}")]
    assert parts == ["rank-2.json", "rank-3.json"], "each writes a part of its own"


@pytest.mark.parametrize(
    ("fault", "then", "feedback_ranks"),
    [
        ("rank=4,step=6,point=update,action=kill", [1, 2], 1),
        ("rank=3,step=4,point=tensors,action=kill", [2, 2], 2),
        ("rank=4,step=5,point=sent,action=term", [2, 1], 2),
    ],
    ids=str,
)
def test_two_feedback_ranks_are_killed_stopped_and_resumed(
    tmp_path: Path, reference: Path, fault: str, then: list[int], feedback_ranks: int
) -> None:
    run_dir = tmp_path / "run"
    words = jobs.words(run_dir, *SHARDS, "replicas=[2, 1]", "feedback.ranks=2")
    jobs.ranks(5, words, fault=fault)
    status = jobs.read_json(run_dir / "status.json")["status"]
    assert status != "completed", "it was disturbed"
    in_replicas(run_dir, then, *SHARDS, options=("--resume", "auto"), feedback_ranks=feedback_ranks)
    assert state_digest(run_dir) == state_digest(reference)
    assert places(run_dir) == places(reference)


def test_a_signal_within_the_sum_stops_all_replicas_at_one_step(tmp_path: Path, reference: Path) -> None:
    run_dir, fault = tmp_path / "run", "rank=1,step=2,point=sum,action=term"
    jobs.ranks(4, jobs.words(run_dir, *SHARDS, "replicas=[2, 1]"), fault=fault)
    status = jobs.read_json(run_dir / "status.json")
    assert status["status"] in ("preempted", "completed"), status
    in_replicas(run_dir, [1, 2], *SHARDS, options=("--resume", "auto"))
    assert state_digest(run_dir) == state_digest(reference)


def test_a_replica_that_was_stopped_is_named(tmp_path: Path) -> None:
    settings = (*SHARDS, "replicas=[2, 1]", "backend.timeout_seconds=8")
    fault = "rank=1,step=3,point=sum,action=stop"
    stopped = jobs.ranks(4, jobs.words(tmp_path / "run", *settings), fault=fault)
    assert stopped.returncode != 0
    assert "rank 1 (block 0 replica 1): no heartbeat for" in stopped.stderr


def test_nan_in_one_replica_is_named_before_others_have_it(tmp_path: Path) -> None:
    fault = "rank=1,step=2,point=weights,action=nan"
    failed = jobs.ranks(4, jobs.words(tmp_path / "run", *SHARDS, "replicas=[2, 1]"), fault=fault)
    assert failed.returncode == 5
    assert "rank 1 (block 0 replica 1)" in failed.stderr


def test_torchrun_starts_replicas(tmp_path: Path) -> None:
    """With torchrun's own agent, which other tests here do without."""
    settings = (*TINY, "steps=2", "shards=2")
    words = jobs.words(tmp_path / "torchrun", *settings, "replicas=[2, 1]")
    jobs.succeed(jobs.forked_torchrun(4, words))
    assert jobs.summary(tmp_path / "torchrun")["world_size"] == 4
    in_one_process(tmp_path / "one", *settings)
    assert state_digest(tmp_path / "torchrun") == state_digest(tmp_path / "one")


def test_torchrun_with_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    refused = jobs.forked_torchrun(3, jobs.words(tmp_path / "run", *TINY, "shards=2", "replicas=[2, 1]"))
    assert refused.returncode == 1, "torchrun's own exit code for any failure"
    assert "need 4 ranks, but torchrun started 3; use --nproc_per_node=4 on one node" in refused.stderr
    assert not (tmp_path / "run").exists(), "refused before the ranks wait for each other"


def test_errors_name_the_ranks_that_are_expected(tmp_path: Path) -> None:
    refused = jobs.ranks(3, jobs.words(tmp_path / "run", *SHARDS, "replicas=[2, 1]"))
    assert refused.returncode == 2
    assert "2 blocks with 2 + 1 replicas and 1 feedback rank need 4 ranks, but torchrun started 3" in refused.stderr
