"""Starts the ranks on this machine, forwards signals to them, and starts them again after a failure.

The first signal asks the ranks to stop at a step that they agree on, a second SIGINT ends them. Nothing here imports
torch before the signals are handled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from types import FrameType
from typing import Any

from bllpipe.config import Config
from bllpipe.engines import topology
from bllpipe.engines.rank_processes import RankProcesses
from bllpipe.errors import NOT_RETRYABLE
from bllpipe.models.allocation import most_ranks
from bllpipe.topology import Topology, num_feedback_ranks
from bllpipe.utils.console import warn
from bllpipe.utils.process import Patience, around_suspension

STOP_SECONDS = 25.0  # ranks need less than 20 to stop at an agreed step, unless a checkpoint takes long to write
POLL_SECONDS = 0.05


def run_ranks(
    config: Config,
    argv: Sequence[str],
    max_restarts: int,
    give_back: Callable[[], None] = lambda: None,
    number: int | None = None,
    stop_seconds: float = STOP_SECONDS,
) -> int:
    """Starts a process for every rank on this machine, and all of them again after a failure, at most ``max_restarts``
    times; returns the exit code of the launcher. ``argv`` are the arguments of the command line. ``give_back`` gives
    the terminal back when Ctrl-Z has stopped the ranks. ``number`` of ranks with ``replicas: auto``; None: one a device
    of this machine. Ranks that still run ``stop_seconds`` after a signal are killed."""
    layout = None if config.replicas == "auto" else topology(config)
    with (
        SignalForwarder(stop_seconds) as stopping,
        _ranks_suspended(stopping, give_back),
        closing(RankProcesses(num_ranks(config, number), argv, config.engine, config.cpu_threads)) as ranks,
    ):
        stopping.ranks = ranks.processes
        failures: dict[int, int] = {}
        for attempt in range(max_restarts + 1):
            if attempt > 0:
                warn(f"{describe_failure(failures, layout)}; restart {attempt} of {max_restarts}")
            while stopping.signal is None and not ranks.is_ready(POLL_SECONDS):
                pass
            if stopping.signal is None:
                failures = ranks.run(attempt)
            if stopping.signal is not None:
                return code_after_signal(stopping.signal, failures, ranks.status())
            if not failures or exit_code_of(failures) in NOT_RETRYABLE:
                break
    return exit_code_of(failures)


def exit_code_of(failures: Mapping[int, int]) -> int:
    """One exit code for those of all ranks that failed. A rank ends with the code of the failure that was first; those
    that have not noticed it get SIGTERM."""
    codes = {code for code in failures.values() if code != -signal.SIGTERM}
    if codes & NOT_RETRYABLE:
        return max(codes & NOT_RETRYABLE)
    return 1 if any(code < 0 for code in codes) else min(codes, default=1 if failures else 0)


def num_ranks(config: Config, asked: int | None = None) -> int:
    """How many ranks a run has here. With ``replicas: auto`` as many as are ``asked`` for, or one for every GPU,
    without GPUs for every ``cpu_threads`` processors, and those of the feedback: at least one for every block, and at
    most as many as the shards of a batch allow."""
    least = topology(config).world_size
    if config.replicas != "auto":
        return least
    if asked is not None:
        return asked
    import torch  # which the launcher imports anyway, and bllpipe check for its estimates

    gpus = torch.cuda.device_count() if config.device != "cpu" else 0
    devices = gpus or usable_processors() // config.cpu_threads
    of_blocks = min(devices, most_ranks(config.num_blocks, config.data.batch_size, config.shards))
    return max(least, of_blocks + (config.feedback.ranks or num_feedback_ranks(of_blocks, config.num_blocks)))


def usable_processors() -> int:
    """The processors that this process may use: fewer than the machine has in a container or a job of SLURM."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_failure(failures: Mapping[int, int], layout: Topology | None) -> str:
    """What happened, as far as exit codes show it: which rank was killed. A rank that failed has reported that itself,
    and all others ended with it. ``layout`` is None while only the ranks know it."""
    killed = [rank for rank, code in failures.items() if code < 0 and code != -signal.SIGTERM]
    if not killed:
        return f"the ranks ended with exit code {exit_code_of(failures)}"
    number = -failures[killed[0]]
    role = f" ({layout.role(killed[0])})" if layout else ""
    return f"rank {killed[0]}{role} was killed by signal {number} ({signal.strsignal(number)})"


def code_after_signal(received: signal.Signals, failures: Mapping[int, int], status: str | None) -> int:
    """The exit code that a shell gives a process ended by a signal, unless the run was complete, or failed while it
    stopped."""
    if exit_code_of(failures) in NOT_RETRYABLE:
        return exit_code_of(failures)
    return 0 if status == "completed" and not failures else 128 + received


class SignalForwarder:
    """A context that forwards signals to the ranks: SIGTERM as soon as they are started, and SIGKILL if they still run
    ``patience`` seconds later. ``signal`` is the first that was received.

    ``ranks`` returns the ids of their processes, which lead process groups of their own; there may be none yet.
    """

    def __init__(self, patience: float) -> None:
        self.signal: signal.Signals | None = None
        self.ranks: Callable[[], set[int]] = set
        self._patience, self._at_once, self._left = patience, False, threading.Event()
        self._before: dict[signal.Signals, Any] = {}
        self._thread = threading.Thread(target=self._pass_on, name="stopping", daemon=True)

    def __enter__(self) -> SignalForwarder:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                    self._before[number] = signal.signal(number, self._note)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left.set()
        self._thread.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Takes no lock and prints nothing, as it may interrupt code that holds one or prints."""
        if self.signal is None:
            self.signal = signal.Signals(number)
        elif number == signal.SIGINT:
            self._at_once = True

    def _pass_on(self) -> None:
        while self.signal is None:
            if self._left.wait(POLL_SECONDS):
                return
        warn(f"{self.signal.name}: the ranks stop; a second Ctrl-C ends them at once")  # the terminal may be gone
        patience, signalled = Patience(self._patience), set[int]()
        while not self._left.wait(POLL_SECONDS):
            if patience.is_over() and not self._at_once and self.ranks():
                self._at_once = True
                warn(
                    f"ranks that still run {self._patience:g} s after {self.signal.name} are killed, and what they "
                    f"have not saved is lost; --stop-seconds gives them longer"
                )
            if self._at_once:
                _send(os.killpg, self.ranks(), signal.SIGKILL)
            else:
                ranks = self.ranks() - signalled
                _send(os.kill, ranks, signal.SIGTERM)  # which ends a rank that still imports torch, without a message
                signalled |= ranks


def _ranks_suspended(forwarder: SignalForwarder, give_back: Callable[[], None]) -> AbstractContextManager[None]:
    """Ctrl-Z stops the ranks too, which are in sessions of their own and do not hear it."""

    def stop() -> None:
        _send(os.killpg, forwarder.ranks(), signal.SIGSTOP)
        give_back()

    return around_suspension(stop, lambda: _send(os.killpg, forwarder.ranks(), signal.SIGCONT))


def _send(send: Callable[[int, int], None], processes: set[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            send(process, number)
