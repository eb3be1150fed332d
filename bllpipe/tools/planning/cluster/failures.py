"""Goodput of a run whose nodes fail: a renewal process, played often.

    |---- interval ----|C|---- interval ----|C|--- x | restart |---- interval ----|C|
                                                   failure: what came after the last checkpoint is lost

Failures of a cluster of n nodes come after exponentially distributed times with mean MTBF / n. A restart may fail too.
Daly (2006): with interval t, checkpoint time C, restart time R and mean time M between failures, work of t takes
M exp(R / M) (exp((t + C) / M) - 1), and is fastest for t near sqrt(2 C M) - C (Young 1974 without the last term).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, expm1, inf, sqrt

import numpy as np
from numpy.random import Generator

from bllpipe.tools.planning.cluster.description import Failures, Floats

RUNS = 200
SHORTEST_INTERVAL = 1.0  # second
LEAST = 0.01  # a run with less goodput never ends


@dataclass(frozen=True)
class Goodput:
    """The share of a run that is training which is not lost: mean, and the tenth and the ninetieth percentile of
    runs; and the interval of checkpoints in seconds of training (infinite: none)."""

    mean: float
    low: float
    high: float
    interval: float


def goodput(failures: Failures, num_nodes: int, random: Generator, runs: int = RUNS) -> Goodput:
    """Of a run on so many nodes."""
    if failures.node_mtbf_hours is None:
        every = failures.checkpoint_every_seconds
        share = 1.0 if every is None else every / (every + failures.checkpoint_seconds)
        return Goodput(share, share, share, every or inf)
    mtbf = failures.node_mtbf_hours * 3600 / num_nodes
    work = failures.run_hours * 3600
    interval = failures.checkpoint_every_seconds or best_interval(failures.checkpoint_seconds, mtbf)
    restart = sum(failures.restart_seconds) / len(failures.restart_seconds)
    if work / expected_seconds(work, interval, failures.checkpoint_seconds, restart, mtbf) < LEAST:
        return Goodput(0.0, 0.0, 0.0, interval)
    taken = play_runs(work, interval, failures.checkpoint_seconds, failures.restart_seconds, mtbf, runs, random)
    shares = work / taken
    low, high = np.quantile(shares, [0.1, 0.9])
    return Goodput(float(work / taken.mean()), float(low), float(high), interval)


def best_interval(checkpoint_seconds: float, mtbf: float) -> float:
    """Daly's first-order optimum, in seconds of training."""
    return max(SHORTEST_INTERVAL, sqrt(2 * checkpoint_seconds * mtbf) - checkpoint_seconds)


def expected_seconds(work: float, interval: float, checkpoint: float, restart: float, mtbf: float) -> float:
    """The expected time of ``work`` seconds of training (Daly 2006, equation 13); infinite beyond floating point."""
    try:
        return mtbf * exp(restart / mtbf) * expm1((interval + checkpoint) / mtbf) * work / interval
    except OverflowError:
        return inf


def play_runs(
    work: float,
    interval: float,
    checkpoint: float,
    restarts: Sequence[float],
    mtbf: float,
    runs: int,
    random: Generator,
) -> Floats:
    """Seconds of ``runs`` runs, all played at once: from failure to failure a run finishes whole intervals with their
    checkpoints, and loses the rest. The last interval may be shorter, and counts in proportion."""
    cycle = interval + checkpoint
    left, seconds = np.full(runs, work), np.zeros(runs)
    choices = np.asarray(restarts, dtype=np.float64)
    restart = np.zeros(runs)  # before the next interval
    while (active := left > 0).any():
        until = random.exponential(mtbf, runs)
        needed = restart + left * cycle / interval
        completes = active & (needed <= until)
        fails = active & ~completes
        seconds += np.where(completes, needed, np.where(fails, until, 0.0))
        intervals = np.floor(np.maximum(until - restart, 0) / cycle)
        left = np.where(completes, 0.0, np.where(fails, np.maximum(left - intervals * interval, 0.0), left))
        restart = np.where(fails, random.choice(choices, runs), restart)
    return seconds
