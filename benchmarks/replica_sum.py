"""The cost of the sum over the replicas of a block: gradients of some size, added up by processes on this machine.

Two ways, taken in turn in one run: the fixed tree (``reduce=ordered``), and gloo's own all-reduce (``reduce=native``).
Both pack and unpack the gradients of 60 parameters.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.report import Timing, table, write
from bllpipe.distributed.process_group import GROUP_TIMEOUT, open_replica_groups
from bllpipe.distributed.replica_sum import ReplicaSum
from bllpipe.topology import Topology
from bllpipe.utils.tree_sum import TreeSum

PARAMETERS = 60


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replica_sum", description=__doc__)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1.0, 44.0], help="sizes of all gradients")
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--n", type=int, default=20, help="sums that count")
    parser.add_argument("--warmup", type=int, default=3, help="sums before them")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    options = parser.parse_args()
    cases = [(size, number) for size in options.megabytes for number in options.replicas]
    results = [
        {"megabytes": size, "replicas": number, **measure(size, number, options.n, options.warmup)}
        for size, number in cases
    ]
    rows = [[f"{each['megabytes']:g}", each["replicas"], each["ordered"], each["native"]] for each in results]
    print(table(["MB", "replicas", "ordered", "native"], rows))
    print(f"median of {options.n} (quartiles), {options.warmup} before them; torch {torch.__version__}")
    write(options.json, (__doc__ or "").splitlines()[0], vars(options), results)


def measure(megabytes: float, replicas: int, n: int, warmup: int) -> dict[str, Timing]:
    """The timing of each way, in the first replica."""
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (replicas, int(megabytes * 1e6 / 4 / PARAMETERS), n + warmup, folder, answers)
        processes = [context.Process(target=_process, args=(rank, *arguments), daemon=True) for rank in range(replicas)]
        for process in processes:
            process.start()
        seconds: dict[str, list[float]] = answers.get(timeout=600)
        for process in processes:
            process.join(timeout=30)
    return {way: Timing.of(values[warmup:]) for way, values in seconds.items()}


def _process(rank: int, replicas: int, elements: int, times: int, folder: str, answers: Any) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", replicas)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=replicas, timeout=GROUP_TIMEOUT)
    layout, ranks = Topology(1, num_shards=replicas, replicas=(replicas,)), tuple(range(replicas))
    group, held = open_replica_groups([ranks])[ranks], [layout.passes_of(other) for other in ranks]
    gradients = {f"gradient.{number}": torch.randn(elements) for number in range(PARAMETERS)}
    posts: Any = store
    ports = {
        way: ReplicaSum(f"sum {way}", ranks, rank, held, group, posts, gradients, ordered=way == "ordered")
        for way in ("ordered", "native")
    }
    seconds: dict[str, list[float]] = {way: [] for way in ports}
    for _ in range(times):
        for way, port in ports.items():
            tree = TreeSum(replicas)
            tree.add(rank, dict(gradients))
            dist.barrier()
            start = time.perf_counter()
            port.total(tree)
            seconds[way].append(time.perf_counter() - start)
    if rank == 0:
        answers.put(seconds)
        answers.close()
        answers.join_thread()
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
