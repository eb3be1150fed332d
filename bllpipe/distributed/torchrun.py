"""The environment of a process of torchrun or bllpipe's launcher: rank, world size, addresses and elastic agent.

Only this file reads these environment variables.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import signal
import socket
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from bllpipe.errors import NOT_RETRYABLE, ConfigError
from bllpipe.utils.files import RunLock
from bllpipe.utils.process import end_with_parent

LAUNCHER = "BLLPIPE_LAUNCHER"  # set by the process that bllpipe's launcher starts ranks from
LOOPBACK = "127.0.0.1"
SETTINGS = {
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "SLURM_NNODES",
    "SLURM_NTASKS",
    "SLURM_CPUS_PER_TASK",
    "SLURM_GPUS_ON_NODE",
}
GLOO_INTERFACE, NCCL_INTERFACE = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
PROBE_SECONDS = 1.0


@dataclass(frozen=True)
class RankEnvironment:
    """One process of a job. ``restarts_left`` is the number of restarts that torchrun has left, ``node`` the number of
    its machine. ``has_agent``: torchrun or bllpipe's launcher is its parent; ``launcher`` is the id of the
    process that bllpipe's launcher starts ranks from, and None under torchrun. ``job`` is the id of torchrun's
    rendezvous, unless it is that of all."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int
    agent_hosts_store: bool
    restarts_left: int = 0
    node: int = 0
    has_agent: bool = False
    launcher: int | None = None
    job: str | None = None

    @property
    def on_one_machine(self) -> bool:
        return self.local_world_size == self.world_size

    def check_restarts(self, resumes: bool) -> None:
        """ConfigError if a restart would begin a new run: with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 rank 0 has the
        store, which ends with the attempt; a job that ``resumes`` in a directory of its own does not need it."""
        if self.has_agent and not self.agent_hosts_store and self.restarts_left > 0 and not resumes:
            raise ConfigError(
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 lets a lost machine come back, but a restart by torchrun then "
                "does not know the run directory of the attempt before it; use --run-dir DIR --resume auto, or in a "
                "script bllpipe.train(..., run_dir=DIR, resume='auto')"
            )

    def lock(self) -> RunLock:
        """A lock that outlives the attempts which the agent of this process starts; bllpipe's own launcher may always
        start another one."""
        if self.launcher is not None or not self.has_agent:
            return RunLock(self.launcher, restarts=self.launcher is not None)
        return RunLock(os.getppid(), restarts=self.restarts_left > 0, job=self.job)

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> RankEnvironment | None:
        """None outside torchrun; ConfigError if only a part of its variables is set."""
        if "RANK" not in variables or "WORLD_SIZE" not in variables:
            return None
        try:
            return cls._parse(variables)
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"RANK and WORLD_SIZE are set, but {error} is missing or no number; use torchrun, or unset RANK and "
                f"WORLD_SIZE"
            ) from error

    @classmethod
    def _parse(cls, variables: Mapping[str, str]) -> RankEnvironment:
        restarts = int(variables.get("TORCHELASTIC_RESTART_COUNT", "0"))
        rank, world_size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
        if not 0 <= rank < world_size:
            raise ConfigError(
                f"RANK is {rank} and WORLD_SIZE {world_size}, but ranks are numbered from 0 to WORLD_SIZE - 1; use "
                f"torchrun, or unset RANK and WORLD_SIZE"
            )
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=int(variables["LOCAL_RANK"]),
            local_world_size=int(variables["LOCAL_WORLD_SIZE"]),
            master_addr=variables["MASTER_ADDR"],
            master_port=int(variables["MASTER_PORT"]),
            agent_hosts_store=variables.get("TORCHELASTIC_USE_AGENT_STORE", "False") == "True",
            restarts_left=int(variables.get("TORCHELASTIC_MAX_RESTARTS", "0")) - restarts,
            node=int(variables.get("GROUP_RANK", "0")),
            has_agent=has_agent(variables),
            launcher=int(variables[LAUNCHER]) if LAUNCHER in variables else None,
            job=run_id if (run_id := variables.get("TORCHELASTIC_RUN_ID")) != "none" else None,
        )


def fault_text(variables: Mapping[str, str] = os.environ) -> str:
    """The faults to inject (BLLPIPE_FAULT); ConfigError unless BLLPIPE_ALLOW_FAULTS=1."""
    text = variables.get("BLLPIPE_FAULT", "")
    if text and variables.get("BLLPIPE_ALLOW_FAULTS") != "1":
        raise ConfigError(
            f"BLLPIPE_FAULT is {text!r}, but faults are not allowed; unset it, or set BLLPIPE_ALLOW_FAULTS=1"
        )
    return text


def settings(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that affect computation and communication; none that identifies a user or a machine."""
    families = ("NCCL_", "GLOO_", "OMP_", "MKL_", "TORCH_NCCL_")
    chosen = {name for name in variables if name.startswith(families)} | (SETTINGS & variables.keys())
    return {name: variables[name] for name in sorted(chosen)}


def is_lead(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that prints what all ranks found alike: rank 0, and every process of which it is
    not certain that it is another rank. An error that is said twice is better than one that is not said."""
    try:
        rank, world_size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
    except (KeyError, ValueError):
        return True
    return not 0 < rank < world_size


def has_agent(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether an elastic agent, of torchrun or of our launcher, ends this process when another rank has failed."""
    return "TORCHELASTIC_RUN_ID" in variables


def launcher_environment(cpu_threads: int, variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment that all ranks of bllpipe's launcher have in common."""
    return {"OMP_NUM_THREADS": str(cpu_threads), **variables}


def rank_environments(number: int, port: int, attempt: int, parent: int) -> list[dict[str, str]]:
    """What each of ``number`` ranks of bllpipe's launcher has in its environment, as torchrun would set it. The store
    listens at ``port``; the ranks are started by the process ``parent``."""
    world = {
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "GROUP_RANK": "0",
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(port),
        LAUNCHER: str(parent),
        "TORCHELASTIC_RUN_ID": f"attempt_{attempt}",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
    }
    return [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


def become_rank(variables: Mapping[str, str]) -> None:
    """Gives this process, and those that it starts, the variables of a rank."""
    os.environ.update(variables)


def allow_deterministic_products(variables: MutableMapping[str, str] = os.environ) -> None:
    """Gives cuBLAS workspaces of a fixed size, without which its products may differ between runs; called before the
    first one. A value that is already set is kept."""
    variables.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def choose_interface(variables: MutableMapping[str, str] = os.environ) -> None:
    """Makes gloo connect the ranks of one machine over its loopback interface, unless a variable names another."""
    if not variables.get(GLOO_INTERFACE):  # with an empty one gloo would listen at the address of the host's name
        variables[GLOO_INTERFACE] = "lo0" if sys.platform == "darwin" else "lo"


def check_interfaces(use_nccl: bool, variables: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError for a variable of gloo, or of NCCL, that names an interface which this machine does not have.

    Gloo takes whole names, and NCCL their beginnings, or whole names after ``=``; after ``^`` those not to use.
    """
    present = [name for _, name in socket.if_nameindex()]
    for name in variables.get(GLOO_INTERFACE, "").split(","):
        if name and name not in present:
            raise _no_interface(GLOO_INTERFACE, name, present, variables)
    wanted = variables.get(NCCL_INTERFACE, "")
    if not use_nccl or not wanted or wanted.startswith("^"):
        return
    names = [name.partition(":")[0] for name in wanted.removeprefix("=").split(",")]
    matches = str.__eq__ if wanted.startswith("=") else str.startswith
    if not any(matches(found, name) for found in present for name in names):
        raise _no_interface(NCCL_INTERFACE, " or ".join(names), present, variables)


def refused_by_gloo(message: str, variables: Mapping[str, str] = os.environ) -> ConfigError | None:
    """The error for a ``message`` of gloo about a variable that it has read; None for any other message."""
    if found := re.search(r"Unable to find address for: (\S+)", message):
        present = [name for _, name in socket.if_nameindex()]
        return _no_interface(GLOO_INTERFACE, found[1], present, variables, has_no="address")
    if "unsupported gloo device" in message:
        return ConfigError(
            f"GLOO_DEVICE_TRANSPORT is {variables.get('GLOO_DEVICE_TRANSPORT')!r}, which this torch does not have; "
            f"use TCP, or unset GLOO_DEVICE_TRANSPORT"
        )
    return None


def _no_interface(
    variable: str, name: str, present: Sequence[str], variables: Mapping[str, str], has_no: str = ""
) -> ConfigError:
    """The error for an interface that is not there, or ``has_no`` address."""
    others = [each for each in present if not each.startswith("lo") and each != name]
    usable = (difflib.get_close_matches(name, others, n=1) or others or present or ["NAME"])[0]
    found = f"whose interface {name} has no {has_no}" if has_no else f"which has no interface {name}"
    return ConfigError(
        f"{variable} is {variables.get(variable)!r} on {socket.gethostname()}, {found}; its interfaces are "
        f"{', '.join(present) or 'not known'}; use one that the other ranks reach, such as {variable}={usable}, or "
        f"unset {variable}"
    )


def die_with_agent(environment: RankEnvironment) -> None:
    """From now on this rank ends when its agent ends or is killed; at once if the agent is dead already.

    The agent may die between the start of a rank and this call, and the parent process id is no proof of that: in a
    container torchrun itself may be the process that adopts orphans. But then the port of the agent's store refuses
    connections.
    """
    if not environment.has_agent:
        return
    end_with_parent(environment.launcher)
    if environment.on_one_machine and environment.agent_hosts_store:
        try:
            socket.create_connection((environment.master_addr, environment.master_port), PROBE_SECONDS).close()
        except ConnectionRefusedError:
            os._exit(1)
        except OSError:
            return  # opening the store will report it


def stop_torchrun(environment: RankEnvironment, exit_code: int) -> None:
    """Ends the torchrun that started this rank, if it would restart a rank whose failure is not retryable.

    torchrun restarts ranks for any exit code, and only a signal stops it: at SIGTERM it ends, with the remaining ranks
    and an exit code other than 0. Only one rank of a machine may call this, as a second signal would interrupt torchrun
    while it ends the others. A rank that a user's script started does not signal its parent.
    """
    started_by_torchrun = environment.has_agent and os.getsid(0) == os.getpid()  # torchrun gives each rank a session
    if exit_code in NOT_RETRYABLE and environment.restarts_left > 0 and started_by_torchrun:
        with contextlib.suppress(ProcessLookupError):
            os.kill(os.getppid(), signal.SIGTERM)
