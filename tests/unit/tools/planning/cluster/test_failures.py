"""Goodput: the renewal process against Daly's closed form."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from bllpipe.tools.planning.cluster.description import Failures
from bllpipe.tools.planning.cluster.failures import best_interval, expected_seconds, goodput, play_runs


@pytest.mark.parametrize(
    ("interval", "checkpoint", "restart", "mtbf"), [(100, 5, 20, 1000), (300, 10, 60, 1000), (50, 1, 0, 400)]
)
def test_the_renewal_process_agrees_with_daly(interval: float, checkpoint: float, restart: float, mtbf: float) -> None:
    work = 200 * interval
    taken = play_runs(work, interval, checkpoint, [restart], mtbf, 600, np.random.default_rng(0))
    expected = expected_seconds(work, interval, checkpoint, restart, mtbf)
    # the first interval needs no restart, and the process begins anew after each failure: a restart less for a run
    assert taken.mean() == pytest.approx(expected, rel=0.02)


def test_youngs_interval_is_the_best_one() -> None:
    best = best_interval(10.0, 20_000.0)
    assert best == pytest.approx(622.5, abs=0.1)
    least = expected_seconds(1e6, best, 10, 60, 20_000)
    for factor in (0.5, 0.8, 1.25, 2.0):
        assert expected_seconds(1e6, factor * best, 10, 60, 20_000) > least


def test_more_nodes_fail_more_often() -> None:
    failures = Failures(node_mtbf_hours=500.0, restart_seconds=[30.0, 90.0], checkpoint_seconds=5.0)
    found = [goodput(failures, nodes, np.random.default_rng(0)) for nodes in (1, 64, 512)]
    assert 1 > found[0].mean > found[1].mean > found[2].mean > 0.5
    assert found[0].interval > found[2].interval
    for each in found:
        assert 0 < each.low <= each.high <= 1


def test_without_failures_only_checkpoints_cost_time() -> None:
    random = np.random.default_rng(0)
    assert goodput(Failures(), 100, random).mean == 1.0
    assert goodput(Failures(), 100, random).interval == inf
    assert goodput(Failures(checkpoint_every_seconds=9.0, checkpoint_seconds=1.0), 100, random).mean == 0.9


def test_a_run_that_never_ends_is_not_played() -> None:
    failures = Failures(node_mtbf_hours=0.01, checkpoint_every_seconds=3600.0)
    assert goodput(failures, 1000, np.random.default_rng(0)).mean == 0.0
