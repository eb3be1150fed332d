"""What stands at the end of a run: summary.json as others rely on it, and one table."""

from __future__ import annotations

from typing import Any

import pytest

from bllpipe.config import Config
from bllpipe.config.running import EvaluateConfig
from bllpipe.topology import Topology
from bllpipe.training.run_directory import summarise, table
from bllpipe.training.run_schedule import RunSchedule

KEYS = {
    *("method", "engine", "world_size", "steps", "epochs", "test_accuracy", "block_accuracy", "images_per_second"),
    *("seconds", "busy", "waiting", "sent_bytes", "cpu_seconds", "peak_memory_bytes", "parameters", "state_sha256"),
}


def report(role: str, accuracy: float | None, digest: str) -> dict[str, Any]:
    return {
        "role": role,
        "busy": 0.5,
        "waiting": {"alpha 0->1": 1.5},
        "sent_bytes": {"alpha 0->1": 4096},
        "cpu_seconds": 2.5,
        "images_per_second": 100.0 if accuracy is None else 1000 * accuracy,
        "accuracy": accuracy,
        "ensemble_accuracy": None,
        "parameters": 12345,
        "peak_memory_bytes": 3 * 2**20,
        "digest": digest,
    }


PLAN = RunSchedule(
    total_steps=30, last_step=30, steps_per_epoch=20, batch_size=8, num_test=10, evaluate_every=20, save_every=20
)
REPORTS = [report("block 0", 0.5, "a"), report("block 1", 0.75, "b"), report("feedback", None, "c")]


def summary(reports: list[dict[str, Any]] = REPORTS) -> dict[str, Any]:
    return summarise(Config(blocks=2), Topology(2), reports, PLAN, seconds=4.0)


def test_the_summary_has_every_key_of_the_contract() -> None:
    found = summary()
    assert found.keys() >= KEYS
    assert (found["test_accuracy"], found["block_accuracy"]) == (0.75, [0.5, 0.75]), "the last block's head counts"
    assert (found["world_size"], found["steps"], found["epochs"]) == (3, 30, 1.5)
    assert found["images_per_second"] == 750.0
    assert len(found["busy"]) == len(found["waiting"]) == len(found["parameters"]) == 3


def test_the_digest_depends_on_every_rank_and_their_order() -> None:
    digests = {
        summary([{**one, "digest": digest} for one, digest in zip(REPORTS, letters, strict=True)])["state_sha256"]
        for letters in ("abc", "abd", "acb", "xbc")
    }
    assert len(digests) == 4


def test_the_table_has_a_row_a_rank() -> None:
    lines = table(summary()).splitlines()
    assert lines[1].split() == ["0", "block", "0", "50.00", "%", "50.00", "%", "12,345", "3", "MiB"]
    assert lines[3].split() == ["2", "feedback", "-", "50.00", "%", "12,345", "3", "MiB"]
    assert lines[4] == "test accuracy 75.00 % after 30 steps (1.5 epochs) in 4.0 s; 750 images/s in steady state"
    assert lines[5] == f"state_sha256 {summary()['state_sha256']}"


@pytest.mark.parametrize(("accuracy", "shown"), [(0.9972, "99.72 %"), (None, "-")])
def test_all_heads_together_have_a_line_beside_the_last_block(accuracy: float | None, shown: str) -> None:
    config = Config(blocks=2, evaluate=EvaluateConfig(ensemble=True))
    reports = [REPORTS[0], {**REPORTS[1], "ensemble_accuracy": accuracy}, REPORTS[2]]
    found = summarise(config, Topology(2), reports, PLAN, seconds=4.0)
    assert (found["ensemble_accuracy"], found["test_accuracy"]) == (accuracy, 0.75)
    rows = table(found).splitlines()
    assert rows[4].split("together")[1].strip() == shown and rows[4].startswith("all heads together ")
    assert rows[5].startswith("test accuracy 75.00 % ")
    assert rows[4].rindex(shown) + len(shown) == rows[1].index("50.00 %") + len("50.00 %"), "in the same column"
    assert "ensemble_accuracy" not in summary() and "together" not in table(summary())


def test_a_run_without_a_test_has_no_accuracy() -> None:
    found = summary([{**one, "accuracy": None} for one in REPORTS])
    assert (found["test_accuracy"], found["block_accuracy"]) == (None, [])
    lines = table(found).splitlines()
    assert lines[1].split()[:4] == ["0", "block", "0", "-"]
    assert lines[4] == "30 steps without a test (1.5 epochs) in 4.0 s; 750 images/s in steady state"


def test_a_run_that_was_stopped_early_has_no_rate() -> None:
    """It once trained 0 images/s in steady state."""
    found = summary([{**one, "images_per_second": 0.0} for one in REPORTS])
    assert table(found).splitlines()[4].endswith("in 4.0 s; it ended before its rate was steady")


def test_replicas_of_a_block_count_once() -> None:
    """They are as wide as their roles in the table, and the digest is that of one of each block."""
    roles = ("block 0 replica 0", "block 0 replica 1", "block 1", "feedback")
    reports = [report(role, 0.5, letter) for role, letter in zip(roles, "axbc", strict=True)]
    layout = Topology(2, num_shards=2, replicas=(2, 1))
    found = summarise(Config(blocks=2, replicas=[2, 1]), layout, reports, PLAN, seconds=4.0)
    assert found["state_sha256"] == summary()["state_sha256"]
    assert (found["world_size"], found["tested_ranks"]) == (4, [0, 2])
    rows = table(found).splitlines()
    assert rows[2].startswith("   1  block 0 replica 1             - "), "its accuracy is that of the first"
    assert len({len(row) for row in rows[1:5]}) == 1
