"""One attempt of a job on this machine: torch's elastic agent starts the ranks and watches them, with a rendezvous that
no other process can reach.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous.api import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from bllpipe.distributed.process_group import LOOPBACK, loopback_store
from bllpipe.distributed.torchrun import launcher_environment
from bllpipe.training.run_directory import RunDirectory, posted_directory

STORE_SECONDS = 60.0  # the agent's own waits, on this machine


class Loopback(RendezvousHandler):
    """A rendezvous of one agent with itself. Torch's own would listen on every interface, and unpickle what it reads
    from its store."""

    def __init__(self, name: str, store: TCPStore) -> None:
        self._name, self._store = name, store

    def get_backend(self) -> str:
        return "loopback"

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        place = RendezvousStoreInfo(LOOPBACK, self._store.port)
        return RendezvousInfo(PrefixStore(f"agent/{self._name}", self._store), 0, 1, place)

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nothing to close: there is one agent."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._name

    def shutdown(self) -> bool:
        return True


class RankProcesses:
    """Starts ``python -m bllpipe.launch`` with ``argv`` as ``number`` ranks. The store outlives the attempts."""

    def __init__(self, number: int, argv: Sequence[str], cpu_threads: int) -> None:
        logging.getLogger("torch.distributed.elastic").setLevel(
            logging.CRITICAL
        )  # a failing rank reports the error itself
        self._number, self._argv, self._cpu_threads = number, argv, cpu_threads
        self._store = loopback_store(STORE_SECONDS)
        self._agent: LocalElasticAgent | None = None

    def run(self, attempt: int) -> dict[int, int]:
        """Runs the ranks to their end; the exit codes of those that failed, that of a signal negative."""
        spec = WorkerSpec(
            role="bllpipe",
            local_world_size=self._number,
            rdzv_handler=Loopback(f"attempt_{attempt}", self._store),
            entrypoint=sys.executable,
            args=("-m", "bllpipe.launch", *self._argv),
            max_restarts=0,
            monitor_interval=0.1,
        )
        self._agent = LocalElasticAgent(spec, DefaultLogsSpecs(log_dir=os.devnull))
        with launcher_environment(self._cpu_threads):
            result = self._agent.run()
        return {rank: failure.exitcode for rank, failure in result.failures.items()}

    def processes(self) -> set[int]:
        """The ids of the processes of this attempt, as far as they have been started; each leads a group of its own."""
        workers = self._agent.get_worker_group().workers if self._agent else []
        return {worker.id for worker in workers if worker.id is not None}

    def status(self) -> str | None:
        """The status in the run directory on which the ranks have agreed."""
        directory = posted_directory(PrefixStore("bllpipe", self._store))
        status: str | None = RunDirectory(directory).read_status().get("status") if directory else None
        return status
