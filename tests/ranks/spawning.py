"""Real processes for tests: every rank's result is collected, and a rank that fails or hangs fails the test.

They are forks of a process that has imported torch and done nothing else, so that they start at once."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from queue import Empty
from typing import Any

from tests.waiting import PATIENCE

Task = Callable[..., Any]
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["bllpipe.launch", "bllpipe.engines.sequential", "torchvision"])


def run_ranks(task: Task, world_size: int, *arguments: Any, timeout: float = PATIENCE) -> list[Any]:
    """``task(rank, *arguments)`` in ``world_size`` processes of one gloo group; the results in order of rank."""
    results: Any = FORKSERVER.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            FORKSERVER.Process(target=_rank, args=(task, rank, world_size, folder, results, arguments), daemon=True)
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


def launch_in_a_process(words: list[str], output: Path, variables: dict[str, str], timeout: float = PATIENCE) -> int:
    """``python -m bllpipe.launch words`` with ``variables`` in its environment: its exit code, that of a signal
    negative. What it prints goes to ``output``."""
    process = FORKSERVER.Process(target=_launch, args=(words, output, variables), daemon=True)
    process.start()
    try:
        process.join(timeout)
        assert process.exitcode is not None, f"not over after {timeout:g} s: {output.read_text()}"
        return process.exitcode
    finally:
        process.kill()
        process.join()


def _launch(words: list[str], output: Path, variables: dict[str, str]) -> None:
    from bllpipe import launch

    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(variables)
    sys.exit(launch.main(words))


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
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=PATIENCE))
    try:
        results.put((rank, task(rank, *arguments), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
