"""The links for NCCL between two real processes, on gloo groups, which are what a CPU has of them: what arrives, and
what becomes of the receives that are posted ahead when a run is stopped."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from bllpipe.config.running import BackendConfig
from bllpipe.distributed.message_format import Layout
from bllpipe.distributed.nccl import NcclReceiver, NcclSender
from bllpipe.distributed.process_links import ProcessLinks
from tests.ranks.test_gloo_links import CPU, EDGE, ROUNDS, alpha, layout
from tests.support.spawning import run_ranks

pytestmark = pytest.mark.ranks
BACKENDS = {"alpha": "nccl", "target": "gloo", "stats": "gloo"}
# how many of the rounds are done when the run ends, and how many receives are posted
CASES = [(done, ring) for done in range(len(ROUNDS) + 1) for ring in (1, 2, 3)]


def wires_of(group: Any, store: Any) -> ProcessLinks:
    return ProcessLinks({EDGE: group}, BACKENDS, BackendConfig(), CPU, store)


def stopped_behind(done: int, ring: int, rank: int, group: Any, store: Any) -> list[list[float]]:
    """A run that has ``ROUNDS`` before it and ends behind ``done`` of them; the group is closed before this returns."""
    wires, ours = wires_of(group, store), layout(ring=ring)
    values = sent(wires, ours, done) if rank == 0 else received(wires, ours, done)
    wires.end(lambda edge: iter(ROUNDS))
    wires.finish()
    dist.destroy_process_group(group)
    return values


def sent(wires: ProcessLinks, ours: Layout, number: int) -> list[list[float]]:
    sender: Any = wires.sender(ours)
    assert type(sender) is NcclSender and wires.has_nccl
    wires.agree()
    for entry in ROUNDS[:number]:
        sender.send(alpha(entry))
    return [alpha(entry).alpha_BCHW.flatten().tolist() for entry in ROUNDS[:number]]


def received(wires: ProcessLinks, ours: Layout, number: int) -> list[list[float]]:
    receiver: Any = wires.receiver(ours, iter(ROUNDS))
    assert type(receiver).__name__ == "NcclReceiver"
    wires.agree()
    return [receiver.recv().alpha_BCHW.flatten().tolist() for _ in range(number)]


def left_alone(rank: int, group: Any) -> bool:
    """Whether a receive that is posted ahead is still there when its sender has sent all that it had."""
    if rank == 0:
        sender = NcclSender(layout(), group, 2, CPU)
        sender.send(alpha(ROUNDS[0]))
        sender.finish()
        return True
    receiver = NcclReceiver(layout(), group, iter(ROUNDS), CPU)
    receiver.recv()
    try:
        receiver._posted[0][2].wait(timedelta(seconds=1))
    except RuntimeError:
        return True
    return False


def everything(rank: int, folder: str) -> tuple[list[list[list[float]]], bool]:
    groups = [dist.new_group([0, 1], timeout=timedelta(seconds=20)) for _ in range(len(CASES) + 1)]
    stores = [dist.FileStore(f"{folder}/{done}-{ring}", 2) for done, ring in CASES]
    values = [
        stopped_behind(done, ring, rank, group, store)
        for (done, ring), group, store in zip(CASES, groups, stores, strict=False)
    ]
    alone = left_alone(rank, groups[-1])
    dist.barrier()  # neither may be gone while the other one still waits for nothing
    return values, alone


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_ranks(everything, 2, str(tmp_path_factory.mktemp("stores")))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_that_is_stopped_closes_its_groups(results: list[Any], case: tuple[int, int]) -> None:
    """Wherever it stops, every receive that is posted ends, and what was sent has arrived."""
    there, here = (values[CASES.index(case)] for values, _ in results)
    assert here == there and len(here) == case[0]


def test_without_an_end_a_receive_would_stay(results: list[Any]) -> None:
    assert results[1][1]
