"""Opening the world: the job's store, the default process group, and a group of two for every edge."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from bllpipe.errors import WireError
from bllpipe.ports import Store
from bllpipe.topology import Edge
from bllpipe.wire.attempt import meet
from bllpipe.wire.environment import RankEnvironment
from bllpipe.wire.loopback import loopback_address, loopback_store

# Receiving threads sit in gloo for as long as a slow block takes; the loops have their own, shorter, timeouts.
FOR_EVER = timedelta(days=30)
# The store of an elastic agent is there before any rank is. If it is not found, the agent is gone.
CONNECT_SECONDS = 30.0
NAME = "bllpipe"  # in front of all keys
MOST_PROCESSORS = 4  # of a GPU, for one edge


@dataclass(frozen=True)
class World:
    """``store`` belongs to attempt number ``attempt`` alone; ``job_store`` outlives restarts of the group."""

    environment: RankEnvironment
    store: Store
    job_store: Store
    raw_store: Any
    attempt: int
    timeout: float
    name: str = NAME

    def another_connection(self) -> World:
        """The same stores for another thread: a connection can do nothing else while somebody waits in it."""
        tcp = _connect(self.environment, self.timeout, hosts=False)
        return _world(self.environment, tcp, self.attempt, self.timeout, self.name)


def open_store(environment: RankEnvironment, timeout: float, number: int = 1) -> World:
    """Connects to the store of the job, the one of this ``number`` in these processes, and every rank with rank 0;
    WireError when nobody answers."""
    name = NAME if number == 1 else f"{NAME}_{number}"
    hosts = environment.rank == 0 and not environment.agent_hosts_store
    try:
        tcp = _connect(environment, timeout, hosts)
        attempt = meet(environment.rank, environment.world_size, dist.PrefixStore(name, tcp), timeout)
    except (RuntimeError, OSError) as error:
        raise WireError(
            f"rank {environment.rank} does not reach the store of the job at {environment.master_addr}, "
            f"port {environment.master_port}: {error}; is what started it still there?"
        ) from error
    return _world(environment, tcp, attempt, timeout, name)


def _world(environment: RankEnvironment, tcp: dist.TCPStore, attempt: int, timeout: float, name: str) -> World:
    """A restarted group must not read the keys of the attempt before it, so each attempt has a prefix of its own."""
    job = dist.PrefixStore(name, tcp)
    store = dist.PrefixStore(f"attempt_{attempt}", job)
    return World(environment, store, job, store, attempt, timeout, name)


def _connect(environment: RankEnvironment, timeout: float, hosts: bool) -> dist.TCPStore:
    """The store of the agent, or else of rank 0, which then listens on the loopback alone if that is its address."""
    address, port = environment.master_addr, environment.master_port
    loopback = loopback_address(address) if hosts else None
    if loopback is not None:
        return loopback_store(timeout, loopback, port)
    patience = min(timeout, CONNECT_SECONDS) if environment.agent_hosts_store else timeout
    tcp = dist.TCPStore(address, port, is_master=hosts, timeout=timedelta(seconds=patience), wait_for_workers=False)
    tcp.set_timeout(timedelta(seconds=timeout))
    return tcp


def open_group(world: World, use_nccl: bool) -> None:
    """Opens the default process group; every rank waits for every other here."""
    environment = world.environment
    if environment.on_one_machine:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if use_nccl else "gloo",
        store=dist.PrefixStore("group", world.raw_store),
        rank=environment.rank,
        world_size=environment.world_size,
        timeout=FOR_EVER,
    )


def open_edges(edges: Iterable[Edge], backend: Callable[[Edge], str], device: torch.device) -> dict[Edge, Any]:
    """A group of two for every edge, made by all ranks in one order and warmed with one message."""
    groups = {}
    for edge in edges:
        options = _first_in_line() if backend(edge) == "nccl" else None
        ends = [edge.src, edge.dst]
        groups[edge] = dist.new_group(ends, backend=backend(edge), timeout=FOR_EVER, pg_options=options)
        _warm(edge, groups[edge], device if backend(edge) == "nccl" else torch.device("cpu"))
    return groups


def _first_in_line() -> Any:
    """NCCL's own streams go before computations that are queued already, on few of the GPU's processors: a receive that
    is posted early spins on those that it has."""
    options = dist.ProcessGroupNCCL.Options()
    options.is_high_priority_stream = True
    options.config.max_ctas = MOST_PROCESSORS
    return options


def _warm(edge: Edge, group: Any, device: torch.device) -> None:
    rank, greeting = dist.get_rank(), torch.zeros(1, device=device)
    if rank == edge.src:
        dist.send(greeting, edge.dst, group=group)
    elif rank == edge.dst:
        dist.recv(greeting, edge.src, group=group)


def add_up(value: torch.Tensor) -> torch.Tensor:
    """The sum of ``value`` over all ranks."""
    total = value.clone()
    dist.all_reduce(total)
    return total


def send_to(rank: int, message: torch.Tensor) -> None:
    """Sends ``message`` over the default group; returns when it is on its way and its memory may be used again."""
    dist.send(message, rank)


def receive_from(rank: int, buffer: torch.Tensor) -> torch.Tensor:
    """The next message of ``rank``, in ``buffer``, which must have its shape and format."""
    dist.recv(buffer, rank)
    return buffer


def wait_for_all() -> None:
    """Returns when every rank has come here."""
    dist.all_reduce(torch.zeros(1))


def close_group() -> None:
    """Leaves the process group; all messages must have arrived."""
    dist.destroy_process_group()
