"""Processes that compute while something is measured, as the other ranks of a run on the same machine will: cores that
share a memory are slower together than each alone."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import BrokenBarrierError
from typing import Any

from bllpipe.config import Config
from bllpipe.errors import ConfigError
from bllpipe.orphans import end_with_parent
from bllpipe.plan.measure import build_probes, compute_as_a_rank, present_device
from bllpipe.run.data.spec import DataSpec

TIMEOUT = 300.0  # seconds until all of them compute


@contextmanager
def neighbours(config: Config, spec: DataSpec, number: int) -> Iterator[None]:
    """``number`` processes that train the units of ``config``'s network, one after another, again and again."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, half of them
    started = context.Barrier(number + 1)
    processes = [context.Process(target=_compute, args=(config, spec, started), daemon=True) for _ in range(number)]
    try:
        for process in processes:
            process.start()
        started.wait(TIMEOUT)
        yield
    except BrokenBarrierError:
        raise ConfigError(
            f"--beside {number}: not all of these processes began to compute within {TIMEOUT:g} s; use fewer of them"
        ) from None
    finally:
        for process in processes:
            process.kill()
            process.join()


def _compute(config: Config, spec: DataSpec, started: Any) -> None:
    parent = os.getppid()
    end_with_parent(parent)
    compute_as_a_rank(config)
    probes = [probe for _, probe in build_probes(config, spec, present_device(config), config.data.batch_size)]
    started.wait(TIMEOUT)
    while parent == os.getppid():  # where the kernel does not see to that
        for probe in probes:
            probe.sample()
