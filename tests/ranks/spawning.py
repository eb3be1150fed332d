"""Real processes for tests: every rank's result is collected, and a rank that fails or hangs fails the test."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from queue import Empty
from typing import Any

Task = Callable[..., Any]


def run_ranks(task: Task, world_size: int, *arguments: Any, timeout: float = 90) -> list[Any]:
    """``task(rank, *arguments)`` in ``world_size`` processes of one gloo group; the results in order of rank."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_rank, args=(task, rank, world_size, folder, results, arguments), daemon=True)
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            return _collect(results, world_size, timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(results: Any, world_size: int, timeout: float) -> list[Any]:
    found: dict[int, Any] = {}
    while len(found) < world_size:
        try:
            rank, value, error = results.get(timeout=timeout)
        except Empty:
            missing = sorted(set(range(world_size)) - found.keys())
            raise AssertionError(f"no result from ranks {missing} within {timeout} s") from None
        assert error is None, f"rank {rank} failed:\n{error}"
        found[rank] = value
    return [found[rank] for rank in range(world_size)]


def _rank(task: Task, rank: int, world_size: int, folder: str, results: Any, arguments: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
    try:
        results.put((rank, task(rank, *arguments), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
