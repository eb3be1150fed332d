"""Opening the world: the job's store, the number of the attempt, the default process group, and a group for every edge.

All ranks have to know the same attempt, and torchrun does not tell: where it starts ranks again because those of
another machine have failed, it counts no restart.

    rank 0                               another rank
    counts: this is attempt 2   ------>  finds attempt 2, or 1 of a rank 0 that is dead
    finds a hello to attempt 2  <------  says hello, with a new random word
    repeats the word            ------>  knows by it that rank 0 is alive

When ranks are started, all those of the attempt before are dead: only what they wrote is still there.

torch's own store listens on every interface; the one here can be reached from this machine only.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from bllpipe.distributed.torchrun import RankEnvironment
from bllpipe.errors import WireError
from bllpipe.messages import Store
from bllpipe.topology import Edge

# Receiving threads sit in gloo for as long as a slow block takes; the loops have their own, shorter, timeouts.
FOR_EVER = timedelta(days=30)
# The store of an elastic agent is there before any rank is. If it is not found, the agent is gone.
CONNECT_SECONDS = 30.0
NAME = "bllpipe"  # in front of all keys
MOST_PROCESSORS = 4  # of a GPU, for one edge
LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.02  # a blocking read of the store would hold up signals


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
        attempt = agree_attempt(environment.rank, environment.world_size, dist.PrefixStore(name, tcp), timeout)
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


def loopback_store(timeout: float, address: str = LOOPBACK, port: int = 0) -> dist.TCPStore:
    """The server of a store, listening at ``address`` alone; port 0 is any that is free."""
    with socket.create_server((address, port)) as listener:
        port = listener.getsockname()[1]
        store = dist.TCPStore(
            address,
            port,
            is_master=True,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            master_listen_fd=listener.fileno(),
        )
        listener.detach()  # the store closes it
    return store


def loopback_address(host: str) -> str | None:
    """The address of ``host`` if it is on the loopback, else None."""
    try:
        address = socket.gethostbyname(host)
    except OSError:
        return None
    return address if ipaddress.ip_address(address).is_loopback else None


def agree_attempt(rank: int, world_size: int, job_store: Store, timeout: float) -> int:
    """The number of this attempt, from 0, once rank 0 and this rank know of each other; WireError after ``timeout``
    seconds."""
    if rank == 0:
        return _call(world_size, job_store, timeout)
    return _answer(rank, job_store, timeout)


def _call(world_size: int, store: Store, timeout: float) -> int:
    attempt = store.add("attempts", 1) - 1
    store.set("attempt", str(attempt))
    deadline = time.monotonic() + timeout
    for rank in range(1, world_size):
        hello = f"hello/{attempt}/{rank}"
        _wait_until(partial(store.check, [hello]), deadline, f"rank 0 waited {timeout:g} s for rank {rank}")
        store.set(f"welcome/{attempt}/{rank}", store.get(hello).decode())
    return attempt


def _answer(rank: int, store: Store, timeout: float) -> int:
    word, attempts = uuid.uuid4().hex, set[str]()

    def welcome() -> bool:
        if not store.check(["attempt"]):
            return False
        attempt = store.get("attempt").decode()
        if attempt not in attempts:
            attempts.add(attempt)
            store.set(f"hello/{attempt}/{rank}", word)
        key = f"welcome/{attempt}/{rank}"
        return store.check([key]) and store.get(key).decode() == word

    _wait_until(welcome, time.monotonic() + timeout, f"rank {rank} waited {timeout:g} s for rank 0")
    return max(map(int, attempts))


def _wait_until(condition: Callable[[], bool], deadline: float, complaint: str) -> None:
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise WireError(f"{complaint} to start; see what it has said, or raise backend.timeout_seconds")
        pause.wait(POLL_SECONDS)
