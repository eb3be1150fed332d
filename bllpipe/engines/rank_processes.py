"""The processes of the ranks on this machine: forks of one server that has imported torch, so that they start at once.

            launcher            handles signals, hosts the store
               |  environments of ranks -->   <-- process ids, exit codes
           rank server          imports what ranks need, uses no GPU; then it forks and waits
          /    |    \\
    rank 0   rank 1   ...       each leads a session of its own

The server leads a session of its own, too, and blocks SIGTERM, SIGINT and SIGHUP: a signal to all processes of a job
must not end it before the ranks. It dies with the launcher, and the ranks die with it. Only on Linux can a process that
has imported torch be forked safely; elsewhere the server starts ranks as new processes.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, Pipe

from bllpipe.distributed.torchrun import become_rank, launcher_environment, rank_environments
from bllpipe.engines import engine
from bllpipe.utils.process import SLICE_SECONDS, Patience, end_with_parent

STORE_SECONDS = 60.0  # the launcher's own waits for its store, on this machine
GRACE_SECONDS = 30.0  # from SIGTERM to SIGKILL, for the ranks that remain when one has failed
TOGETHER_SECONDS = 0.1  # ranks that end within this time are reported together
PROGRAM = "bllpipe.launch"  # of a rank
READY = b"ready"
CAN_FORK = sys.platform == "linux"
BLOCKED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


class RankProcesses:
    """Starts ``python -m bllpipe.launch`` with ``argv`` as ``number`` ranks. The store outlives the attempts."""

    def __init__(
        self, number: int, argv: Sequence[str], engine_name: str, cpu_threads: int, can_fork: bool = CAN_FORK
    ) -> None:
        self._number, self._cpu_threads = number, cpu_threads
        self._arguments = ["fork" if can_fork else "spawn", engine_name, *argv]
        self._running: set[int] = set()
        self._start_server()
        from bllpipe.distributed.process_group import loopback_store  # and torch, while the server imports it too

        self._store = loopback_store(STORE_SECONDS)

    def _start_server(self) -> None:
        self._channel, its_end = Pipe()
        command = [sys.executable, "-m", __name__, str(its_end.fileno()), str(os.getpid()), *self._arguments]
        self._server = subprocess.Popen(
            command, env=launcher_environment(self._cpu_threads), pass_fds=[its_end.fileno()], start_new_session=True
        )
        its_end.close()
        self._ready = False

    def is_ready(self, timeout: float) -> bool:
        """Waits at most ``timeout`` seconds until the server can start ranks, or has ended."""
        with suppress(EOFError):
            self._ready = self._ready or (self._channel.poll(timeout) and self._channel.recv_bytes() == READY)
            return self._ready
        return True

    def run(self, attempt: int) -> dict[int, int]:
        """Runs the ranks to their end; the exit codes of those that failed, that of a signal negative. Those that end
        later than the first ones end because these have failed, and do not count."""
        environments = rank_environments(self._number, self._store.port, attempt, self._server.pid)
        try:
            self._channel.send_bytes(json.dumps(environments).encode())
            ranks = {process: rank for rank, process in enumerate(json.loads(self._channel.recv_bytes()))}
            self._running = set(ranks)
            return self._wait_for(ranks)
        except (EOFError, OSError):  # the server is dead, and the ranks with it
            code = self._server.wait()
            self._start_server()
            return dict.fromkeys(range(self._number), code)
        finally:
            self._running = set()

    def _wait_for(self, ranks: Mapping[int, int]) -> dict[int, int]:
        failures: dict[int, int] = {}
        patience: Patience | None = None
        while self._running:
            while patience is not None and not self._channel.poll(SLICE_SECONDS):
                if patience.is_over():
                    self._signal(signal.SIGKILL)
            process, code = json.loads(self._channel.recv_bytes())
            self._running = self._running - {process}  # not in place: another thread reads it
            if patience is None and code:
                failures[ranks[process]] = code
            if patience is None and failures and not self._channel.poll(TOGETHER_SECONDS):
                self._signal(signal.SIGTERM)
                patience = Patience(GRACE_SECONDS)
        return failures

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running:
            with suppress(ProcessLookupError):
                os.killpg(process, number)

    def processes(self) -> set[int]:
        """The ids of the processes of this attempt that still run; each leads a process group of its own."""
        return self._running

    def close(self) -> None:
        """Ends the server, and with it any rank that still runs."""
        self._server.kill()
        self._server.wait()
        self._channel.close()

    def status(self) -> str | None:
        """The status in the run directory on which the ranks have agreed."""
        from torch.distributed import PrefixStore

        from bllpipe.training.run_directory import RunDirectory, posted_directory

        directory = posted_directory(PrefixStore("bllpipe", self._store))
        status: str | None = RunDirectory(directory).read_status().get("status") if directory else None
        return status


def serve(channel: Connection, engine_name: str, argv: Sequence[str], can_fork: bool) -> None:
    """Starts ranks whenever the launcher asks, and reports their ends, until the launcher closes the channel."""
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    if can_fork:
        engine(engine_name)  # imports torch
    channel.send_bytes(READY)
    with suppress(EOFError):
        while True:
            environments = json.loads(channel.recv_bytes())
            if can_fork:
                ranks = _fork_all(channel, argv, signals, environments)
            else:
                ranks = [_spawn(argv, signals, each) for each in environments]
            channel.send_bytes(json.dumps(ranks).encode())
            for _ in environments:
                process, status = os.wait()
                channel.send_bytes(json.dumps([process, os.waitstatus_to_exitcode(status)]).encode())


def _fork_all(
    channel: Connection,
    argv: Sequence[str],
    signals: set[int | signal.Signals],
    environments: Sequence[Mapping[str, str]],
) -> list[int]:
    """Every rank in a fork of this process; returns when each leads its session, so that a signal to its process group
    is not lost. In the forks, this function does not return."""
    reader, writer = os.pipe()
    processes = []
    for environment in environments:
        with warnings.catch_warnings():  # Python 3.12 warns of threads: NumPy's OpenBLAS ends its own before a fork
            warnings.simplefilter("ignore", DeprecationWarning)
            processes.append(os.fork())
        if not processes[-1]:
            channel.close()
            os.setsid()
            os.close(reader)
            os.close(writer)
            become_rank(environment)
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            sys.exit(importlib.import_module(PROGRAM).main(argv))
    os.close(writer)
    os.read(reader, 1)  # its end: all forks have closed the pipe
    os.close(reader)
    return processes


def _spawn(argv: Sequence[str], signals: set[int | signal.Signals], environment: Mapping[str, str]) -> int:
    """A rank in a new process."""
    unblock = partial(signal.pthread_sigmask, signal.SIG_SETMASK, signals)
    command = [sys.executable, "-m", PROGRAM, *argv]
    become_rank(environment)
    return subprocess.Popen(command, start_new_session=True, preexec_fn=unblock).pid


if __name__ == "__main__":
    descriptor, launcher, start, engine_name, *argv = sys.argv[1:]
    end_with_parent(int(launcher))
    serve(Connection(int(descriptor)), engine_name, argv, can_fork=start == "fork")
