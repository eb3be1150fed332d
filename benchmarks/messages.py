"""The cost of a message: one activation is sent from one process to another on this machine, and back.

Three ways, taken in turn in one run: an edge of the pipeline (header, check, receiver thread, ring), gloo alone
(send and receive of the same bytes into an allocated buffer: the limit of the edge), and a copy of the bytes
in memory (the limit of any transport). Times are halves of a round trip.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.report import Timing, table, write
from bllpipe.config.running import BackendConfig
from bllpipe.distributed.message_format import Layout, alpha_fields
from bllpipe.distributed.process_group import GROUP_TIMEOUT, open_edges
from bllpipe.distributed.process_links import ProcessLinks
from bllpipe.messages import Alpha, Round
from bllpipe.topology import Edge

CPU = torch.device("cpu")
EDGES = (Edge("alpha", 0, 1), Edge("alpha", 1, 0))


@dataclass(frozen=True)
class Case:
    """An activation that real runs send: ``batch`` images of ``shape``."""

    name: str
    batch: int
    shape: tuple[int, int, int]


CASES = (
    Case("digits, block 0", 64, (16, 8, 8)),
    Case("cifar10_small, block 0", 128, (16, 32, 32)),
    Case("ResNet-50, block 2", 128, (1024, 8, 8)),
    Case("ResNet-50, block 0", 128, (512, 16, 16)),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.messages", description=__doc__)
    parser.add_argument("--n", type=int, default=50, help="round trips that count, a case")
    parser.add_argument("--warmup", type=int, default=5, help="round trips before them")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    options = parser.parse_args()
    results = [{"case": case.name, **measure(case, options.n, options.warmup)} for case in CASES]
    print(table(["message", "MiB", "edge", "gloo alone", "copy", "edge / gloo"], [_row(result) for result in results]))
    print(f"median of {options.n} (quartiles), {options.warmup} before them; torch {torch.__version__}")
    write(options.json, __doc__.splitlines()[0], vars(options), results)


def measure(case: Case, n: int, warmup: int) -> dict[str, Any]:
    """Bytes of one message, and the timing of each way."""
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (case, n + warmup, folder, answers)
        processes = [context.Process(target=_process, args=(rank, *arguments), daemon=True) for rank in range(2)]
        for process in processes:
            process.start()
        seconds: dict[str, list[float]] = answers.get(timeout=300)
        for process in processes:
            process.join(timeout=30)
    size = torch.empty(case.batch, *case.shape, device="meta").nbytes
    return {"bytes": size, **{way: Timing.of(values[warmup:]) for way, values in seconds.items()}}


def _row(result: dict[str, Any]) -> list[object]:
    ratio = result["edge"].median / result["gloo alone"].median
    ways = [result[way] for way in ("edge", "gloo alone", "copy")]
    return [result["case"], f"{result['bytes'] / 2**20:.2f}", *ways, f"{ratio:.2f}"]


def _process(rank: int, case: Case, trips: int, folder: str, answers: Any) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=GROUP_TIMEOUT)
    alpha = torch.randn(case.batch, *case.shape)
    ways = {"edge": _edge(rank, alpha, store), "gloo alone": _gloo(rank, alpha), "copy": _copy(alpha)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(trips):
        for way, there_and_back in ways.items():
            start = time.perf_counter()
            there_and_back()
            seconds[way].append((time.perf_counter() - start) / 2)
    if rank == 0:
        answers.put(seconds)
        answers.close()
        answers.join_thread()
    dist.barrier()
    os._exit(0)  # the receiving thread waits for a message that will not come


def _edge(rank: int, alpha: torch.Tensor, store: Any) -> Callable[[], None]:
    """Through the pipeline's own ports."""
    backends = {"alpha": "gloo"}
    wires = ProcessLinks(open_edges(EDGES, lambda edge: "gloo", CPU), backends, BackendConfig(), CPU, store)
    layouts = [
        Layout(edge, ("there", "back"), alpha_fields(tuple(alpha.shape[1:]), alpha.dtype), len(alpha), ring=2)
        for edge in EDGES
    ]
    sender, receiver = wires.sender(layouts[rank]), wires.receiver(layouts[1 - rank], _rounds(len(alpha)))
    wires.agree()
    rounds = _rounds(len(alpha))

    def there_and_back() -> None:
        message = Alpha(next(rounds), alpha)
        if rank == 0:
            sender.send(message)
        receiver.recv()
        if rank == 1:
            sender.send(message)

    return there_and_back


def _gloo(rank: int, alpha: torch.Tensor) -> Callable[[], None]:
    buffer = torch.empty_like(alpha)

    def there_and_back() -> None:
        if rank == 0:
            dist.send(alpha, 1)
            dist.recv(buffer, 1)
        else:
            dist.recv(buffer, 0)
            dist.send(alpha, 0)

    return there_and_back


def _copy(alpha: torch.Tensor) -> Callable[[], None]:
    buffer = torch.empty_like(alpha)

    def there_and_back() -> None:
        buffer.copy_(alpha)
        buffer.copy_(alpha)

    return there_and_back


def _rounds(size: int) -> Iterator[Round]:
    step = 0
    while True:
        yield Round("train", step, size=size)
        step += 1


if __name__ == "__main__":
    main()
