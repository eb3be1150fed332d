"""Stores that nobody outside this machine can reach, and jobs whose store is not there."""

from __future__ import annotations

import os
import socket
import sys

import pytest
import torch.distributed as dist

from benchmarks.family import listening
from bllpipe.distributed.process_group import loopback_address, loopback_store, open_store
from bllpipe.distributed.torchrun import RankEnvironment
from bllpipe.errors import WireError

LOOPBACK = "0100007F"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def environment(rank: int, world_size: int, port: int, agent_hosts_store: bool) -> RankEnvironment:
    return RankEnvironment(rank, world_size, rank, world_size, "localhost", port, agent_hosts_store)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_listens_on_the_loopback_alone() -> None:
    before = listening(os.getpid())
    store = loopback_store(10.0)
    assert listening(os.getpid()) - before == {(LOOPBACK, store.port)}
    client = dist.TCPStore("127.0.0.1", store.port, is_master=False)
    client.set("key", "value")
    assert store.get("key") == b"value"


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("192.0.2.1", None), ("no.such.host.invalid", None)],
)
def test_what_is_on_the_loopback(host: str, address: str | None) -> None:
    assert loopback_address(host) == address


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_rank_0_that_hosts_the_store_itself_listens_on_the_loopback_alone() -> None:
    before, port = listening(os.getpid()), free_port()
    world = open_store(environment(0, 1, port, agent_hosts_store=False), 10.0)
    assert listening(os.getpid()) - before == {(LOOPBACK, port)}
    assert world.attempt == 0


def test_a_store_that_is_gone() -> None:
    port = free_port()
    with pytest.raises(
        WireError, match=f"^rank 1 does not reach the store of the job at localhost, port {port}: .*is the launcher"
    ):
        open_store(environment(1, 2, port, agent_hosts_store=True), 0.5)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = environment(0, 1, server.getsockname()[1], agent_hosts_store=False)
        with pytest.raises(WireError, match="rank 0 does not reach the store of the job .*Address already in use"):
            open_store(taken, 0.5)
