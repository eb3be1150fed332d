"""The store of the job, the number of the attempt, the default process group, and a group for every edge.

All ranks must agree on the attempt, and torchrun does not provide it: when it restarts ranks because those of another
machine have failed, it counts no restart.

    rank 0                               another rank
    counts: this is attempt 2   ------>  reads attempt 2, or 1 of a rank 0 that is dead
    reads a hello to attempt 2  <------  writes hello, with a new random token
    echoes the token            ------>  knows that rank 0 is alive

When ranks are started, all ranks of the attempt before are dead, but their keys are still in the store.

torch's own store listens on every interface; the one here is reachable from this machine only.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from bllpipe.distributed.torchrun import (
    LOOPBACK,
    RankEnvironment,
    check_interfaces,
    choose_interface,
    refused_by_gloo,
)
from bllpipe.errors import WireError
from bllpipe.messages import Store
from bllpipe.topology import Edge
from bllpipe.utils.process import Patience

# Receiver threads wait in gloo as long as a slow block computes; the loops have their own, shorter timeouts.
GROUP_TIMEOUT = timedelta(days=30)
# The store of an elastic agent exists before any rank. If it does not answer, the agent is dead.
CONNECT_SECONDS = 30.0
NAME = "bllpipe"  # in front of all keys
MAX_CTAS = 4  # multiprocessors of a GPU for one edge
FIRST_POLL_SECONDS, POLL_SECONDS = 0.0005, 0.02  # a blocking read of the store would hold up signals


@dataclass(frozen=True)
class World:
    """``store`` belongs to attempt number ``attempt`` alone; ``job_store`` outlives restarts of the group.
    ``raw_store`` is torch's own of the attempt, for its process groups."""

    environment: RankEnvironment
    store: Store
    job_store: Store
    raw_store: dist.Store
    attempt: int
    timeout: float
    name: str = NAME

    def another_connection(self) -> World:
        """The same stores for another thread: a connection is blocked while one thread waits in it."""
        tcp = _connect(self.environment, self.timeout, hosts=False)
        return _world(self.environment, tcp, self.attempt, self.timeout, self.name)


class PatientStore:
    """A store whose waits look for the key again and again, so that a time in which this process was stopped, as by
    Ctrl-Z, does not count. Torch's own timeout is a time on the clock, and a wait in C++ holds up signals."""

    def __init__(self, store: dist.Store, timeout: float) -> None:
        self._store, self._timeout = store, timeout
        self.set, self.add, self.check, self.compare_set = store.set, store.add, store.check, store.compare_set

    def get(self, key: str) -> bytes:
        """Waits for the key to appear. Raises DistStoreError after the timeout."""
        patience, pause, seconds = Patience(self._timeout), threading.Event(), FIRST_POLL_SECONDS
        while not self._store.check([key]):
            if patience.is_over():
                raise dist.DistStoreError(f"wait timeout after {self._timeout:g} s, key: {key}")
            pause.wait(seconds)
            seconds = min(2 * seconds, POLL_SECONDS)
        return self._store.get(key)


def open_store(environment: RankEnvironment, timeout: float, number: int = 1) -> World:
    """Connects to the store of job ``number`` of these processes, and every rank with rank 0; WireError if the store or
    a rank does not answer."""
    name = NAME if number == 1 else f"{NAME}_{number}"
    hosts = environment.rank == 0 and not environment.agent_hosts_store
    try:
        tcp = _connect(environment, timeout, hosts)
        attempt = agree_attempt(environment.rank, environment.world_size, dist.PrefixStore(name, tcp), timeout)
    except (RuntimeError, OSError) as error:
        raise WireError(
            f"rank {environment.rank} does not reach the store of the job at {environment.master_addr}, "
            f"port {environment.master_port}: {error}; is the launcher still running?"
        ) from error
    return _world(environment, tcp, attempt, timeout, name)


def _world(environment: RankEnvironment, tcp: dist.TCPStore, attempt: int, timeout: float, name: str) -> World:
    """A restarted group must not read the keys of the attempt before it, so each attempt has its own prefix."""
    job = dist.PrefixStore(name, tcp)
    store = dist.PrefixStore(f"attempt_{attempt}", job)
    return World(environment, PatientStore(store, timeout), PatientStore(job, timeout), store, attempt, timeout, name)


def _connect(environment: RankEnvironment, timeout: float, hosts: bool) -> dist.TCPStore:
    """The store of the agent, or else of rank 0, which listens on the loopback only if that is its address."""
    address, port = environment.master_addr, environment.master_port
    loopback = loopback_address(address) if hosts else None
    if loopback is not None:
        return loopback_store(timeout, loopback, port)
    connect_timeout = timedelta(seconds=min(timeout, CONNECT_SECONDS) if environment.agent_hosts_store else timeout)
    tcp = dist.TCPStore(address, port, is_master=hosts, timeout=connect_timeout, wait_for_workers=False)
    tcp.set_timeout(timedelta(seconds=timeout))
    return tcp


def open_group(world: World, use_nccl: bool) -> None:
    """Opens the default process group; all ranks wait for each other here. ConfigError if the environment names an
    interface that this machine does not have, one without an address, or another transport than gloo has."""
    environment = world.environment
    if environment.on_one_machine:
        choose_interface()
    check_interfaces(use_nccl)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if use_nccl else "gloo",
            store=dist.PrefixStore("group", world.raw_store),
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=GROUP_TIMEOUT,
        )
    except RuntimeError as error:
        raise refused_by_gloo(str(error)) or error from error


def open_edges(edges: Iterable[Edge], backend: Callable[[Edge], str], device: torch.device) -> dict[Edge, Any]:
    """A group of two ranks for every edge, made by all ranks in the same order and warmed up with one message."""
    rank, groups = dist.get_rank(), dict[Edge, Any]()
    for edge in edges:
        name, ends = backend(edge), [edge.src, edge.dst]
        options = _nccl_options() if name == "nccl" else None
        groups[edge] = dist.new_group(ends, backend=name, timeout=GROUP_TIMEOUT, pg_options=options)
        message = torch.zeros(1, device=device if name == "nccl" else "cpu")
        if rank == edge.src:
            dist.send(message, edge.dst, group=groups[edge])
        elif rank == edge.dst:
            dist.recv(message, edge.src, group=groups[edge])
    return groups


def open_replica_groups(groups: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], Any]:
    """A group over gloo for the ranks in every one of ``groups``, made by all ranks in the same order."""
    return {ranks: dist.new_group(list(ranks), backend="gloo", timeout=GROUP_TIMEOUT) for ranks in groups}


def _nccl_options() -> Any:
    """NCCL's streams have high priority, and few of the GPU's multiprocessors: a receive that is posted early occupies
    them."""
    options = dist.ProcessGroupNCCL.Options()
    options.is_high_priority_stream = True
    options.config.max_ctas = MAX_CTAS
    return options


def add_up(value: torch.Tensor) -> torch.Tensor:
    """The sum of ``value`` over all ranks."""
    total = value.clone()
    dist.all_reduce(total)
    return total


def send_to(rank: int, message: torch.Tensor) -> None:
    """Sends ``message`` over the default group; returns when its memory may be reused."""
    dist.send(message, rank)


def receive_from(rank: int, buffer: torch.Tensor) -> torch.Tensor:
    """The next message of ``rank``, in ``buffer``, which must have its shape and dtype."""
    dist.recv(buffer, rank)
    return buffer


def wait_for_all() -> None:
    """Returns when all ranks have called it."""
    dist.all_reduce(torch.zeros(1))


def close_group() -> None:
    """Destroys the process group; all messages must have arrived."""
    dist.destroy_process_group()


def loopback_store(timeout: float, address: str = LOOPBACK, port: int = 0) -> dist.TCPStore:
    """The server of a store that listens at ``address`` only; port 0 is any free port."""
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
    """The number of this attempt, from 0, once rank 0 and this rank have answered each other; WireError after
    ``timeout`` seconds."""
    if rank == 0:
        return _start_attempt(world_size, job_store, timeout)
    return _join_attempt(rank, job_store, timeout)


def _start_attempt(world_size: int, store: Store, timeout: float) -> int:
    attempt = store.add("attempts", 1) - 1
    store.set("attempt", str(attempt))
    patience = Patience(timeout)
    for rank in range(1, world_size):
        hello = f"hello/{attempt}/{rank}"
        _wait_until(partial(store.check, [hello]), patience, f"rank 0 waited {timeout:g} s for rank {rank}")
        store.set(f"welcome/{attempt}/{rank}", store.get(hello).decode())
    return attempt


def _join_attempt(rank: int, store: Store, timeout: float) -> int:
    token, attempts = uuid.uuid4().hex, set[str]()

    def is_welcome() -> bool:
        if not store.check(["attempt"]):
            return False
        attempt = store.get("attempt").decode()
        if attempt not in attempts:
            attempts.add(attempt)
            store.set(f"hello/{attempt}/{rank}", token)
        key = f"welcome/{attempt}/{rank}"
        return store.check([key]) and store.get(key).decode() == token

    _wait_until(is_welcome, Patience(timeout), f"rank {rank} waited {timeout:g} s for rank 0")
    return max(map(int, attempts))


def _wait_until(condition: Callable[[], bool], patience: Patience, problem: str) -> None:
    pause = threading.Event()
    while not condition():
        if patience.is_over():
            raise WireError(f"{problem} to start; see its output, or raise backend.timeout_seconds")
        pause.wait(POLL_SECONDS)
