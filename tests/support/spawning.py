"""Real processes for tests: every rank's result is collected, and a rank that fails or hangs fails the test.

They are forks of a process that has imported torch and done nothing else, so that they start at once."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path
from queue import Empty
from typing import Any

from tests.support.waiting import PATIENCE

Task = Callable[..., Any]
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    [
        *("bllpipe.launch", "bllpipe.engines.in_process", "bllpipe.engines.ranks", "torchvision"),
        *("torch.distributed.run", "tests.support.forks", "tests.support.frozen"),  # the last one is the last
    ]
)


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


def launch_ranks(
    num_ranks: int,
    words: list[str],
    variables: dict[str, str],
    module: str,
    timeout: float,
    nodes: Sequence[int] = (),
) -> subprocess.CompletedProcess[str]:
    """``python -m module words`` in ``num_ranks`` processes with the variables of torchrun. As its agent does, it ends
    all ranks when one has failed, whose exit code is that of the job. ``nodes`` are numbers of ranks of nodes, all of
    which are this one."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    ranks = [
        {"GROUP_RANK": str(node), "LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": str(size)}
        for node, size in enumerate(nodes or [num_ranks])
        for local in range(size)
    ]
    world = {**place, "WORLD_SIZE": str(num_ranks)}
    environments = [{**variables, **world, **each, "RANK": str(rank)} for rank, each in enumerate(ranks)]
    return _launch(module, words, environments, timeout)


def _launch(
    module: str, words: list[str], environments: list[dict[str, str]], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Processes that begin together, one for each of the environments, and end together: what they printed."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        processes = [
            FORKSERVER.Process(target=_run_module, args=(module, words, out, err, variables), daemon=True)
            for variables in environments
        ]
        try:
            for process in processes:
                process.start()
            code = _first_failure(processes, time.monotonic() + timeout)
            assert code is not None, f"not over after {timeout:g} s\n{out.read_text()}{err.read_text()}"
        finally:
            for process in processes:
                process.kill()
                process.join()
        return subprocess.CompletedProcess([module, *words], code, out.read_text(), err.read_text())


def _first_failure(processes: list[Any], deadline: float) -> int | None:
    """Waits for all, and ends them when one has failed: its exit code, or 0; None when the time is over."""
    failed, running = 0, {process.sentinel: process for process in processes}
    while running:
        over = connection.wait(list(running), deadline - time.monotonic())
        if not over:
            return None
        codes = [running.pop(sentinel).exitcode for sentinel in over]
        if not failed and any(codes):
            failed = next(filter(None, codes))
            for process in running.values():
                process.terminate()
    return failed


def _run_module(module: str, words: list[str], out: Path, err: Path, variables: dict[str, str]) -> None:
    import torch

    torch.set_num_threads(1)
    for path, number in ((out, 1), (err, 2)):
        with path.open("a") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    os.environ.update(variables)
    sys.argv[1:] = words
    warnings.filterwarnings("ignore", "'bllpipe.launch' found in sys.modules", RuntimeWarning)  # it is loaded ahead
    runpy.run_module(module, run_name="__main__", alter_sys=True)


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
