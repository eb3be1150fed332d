"""The end of a run that fails: one message from one rank, a status file with the reason, and no process that waits."""

from __future__ import annotations

import errno
import os
import threading
import time
import traceback
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch.distributed import DistStoreError

from bllpipe.distributed.process_group import World, open_store
from bllpipe.distributed.torchrun import RankEnvironment, stop_torchrun
from bllpipe.engines import Callback
from bllpipe.errors import BllpipeError, OutOfMemoryError, OutputError, WireError
from bllpipe.messages import Store
from bllpipe.training.run_directory import RunDirectory, posted_directory
from bllpipe.training.watchdog import Heartbeats
from bllpipe.training.worker import RoundError
from bllpipe.utils.console import drop_unwritten, warn

# In a RuntimeError of torch. The last one: for the stack of a thread, or more threads than a limit allows.
NO_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory", "Resource temporarily unavail")
SILENT_SECONDS = 5.0  # for which a rank waits until the first one that failed has reported


def cause_of(error: BaseException) -> BaseException:
    """The error itself, without the round in which it was raised; a WireError in place of a timeout of the store, and
    an OutOfMemoryError in place of those of Python, NumPy and torch."""
    cause = error.__cause__ if isinstance(error, RoundError) and error.__cause__ else error
    if (found := _without_memory(cause)) is not None:
        return OutOfMemoryError(
            f"expected more memory for this process, got none ({found}). To need less, use --set "
            f"model.recompute=units, more shards (smaller parts of a batch), more blocks, or more replicas with --set "
            f"sharding=fsdp --set reduce=native"
        )
    if not isinstance(cause, DistStoreError):
        return cause
    found = str(cause).splitlines()[0]
    return WireError(
        f"another rank has not posted within backend.timeout_seconds what this one waits for ({found}). "
        f"It is gone, or has not come so far; if it needs longer, raise backend.timeout_seconds"
    )


def _without_memory(error: BaseException | None) -> str | None:
    """What ``error``, or one that it follows from, says of memory that could not be allocated; None for others."""
    seen: list[BaseException] = []  # a chain may be a circle
    while error is not None and not any(error is each for each in seen):
        seen.append(error)
        text = _text(error).strip().partition("\n")[0]
        by_text = isinstance(error, RuntimeError) and any(part in text for part in NO_MEMORY)
        by_number = isinstance(error, OSError) and error.errno == errno.ENOMEM
        if by_text or by_number or isinstance(error, MemoryError | torch.OutOfMemoryError):
            return text or type(error).__name__
        error = error.__cause__
    return None


def _text(error: BaseException) -> str:
    """The error's message; that of a class of a script's own may raise another one."""
    try:
        return str(error)
    except Exception:
        return ""


def explain(error: BaseException) -> str:
    """The message of the error; with a traceback unless it is a BllpipeError."""
    error = cause_of(error)
    if isinstance(error, BllpipeError):
        return str(error)
    return "this is a fault in bllpipe or in a module of yours\n" + "".join(traceback.format_exception(error))


def exit_code(error: BaseException) -> int:
    cause = cause_of(error)
    return cause.exit_code if isinstance(cause, BllpipeError) else 1


def report_failure(
    error: BaseException,
    store: Store,
    job_store: Store,
    rank: int,
    role: str,
    callbacks: Sequence[Callback] = (),
) -> int:
    """Prints the error, writes status.json and calls ``callbacks``, unless another rank failed first; returns the exit
    code of the first.

    When one rank fails its neighbours fail too, as its messages do not arrive. Only the first error is worth reading,
    so the rank that sets the key reports. The others print nothing, and stay until it has reported: the launcher ends
    all ranks when one has left.
    """
    own = f"{uuid.uuid4().hex}, exit code {exit_code(error)}"
    try:
        first = store.compare_set("failure", "", own).decode()
        if first != own:
            deadline, pause = time.monotonic() + SILENT_SECONDS, threading.Event()
            while not store.check(["failure/reported"]) and time.monotonic() < deadline:
                pause.wait(0.02)
            return int(first.rpartition(" ")[2])
        directory = posted_directory(job_store)
        _print_error(error, rank, role, store)
        if directory is not None:
            _write_status(error, rank, role, directory)
            for callback in callbacks:
                callback.on_failure(directory, cause_of(error))
        store.set("failure/reported", "yes")
    except RuntimeError:  # the store is gone with its launcher: better twice than not at all
        _print_error(error, rank, role, store)
    return exit_code(error)


def _print_error(error: BaseException, rank: int, role: str, store: Store) -> None:
    place, text = f"rank {rank} ({role})", explain(error)
    warn(f"{'' if text.startswith(place) else f'{place}: '}{text}{_last_heartbeats(error, store)}")


def _write_status(error: BaseException, rank: int, role: str, directory: Path) -> None:
    step = {"step": error.entry.step} if isinstance(error, RoundError) else {}
    details = {**step, "rank": rank, "role": role, "reason": explain(error).strip()}
    try:
        RunDirectory(directory).write_status("failed", **details)
    except OutputError as second:
        warn(f"rank {rank} ({role}): and {second.found}")


def _last_heartbeats(error: BaseException, store: Store) -> str:
    """Where all ranks were, if a message has not arrived: the reason is often in another rank."""
    if not isinstance(cause_of(error), WireError):
        return ""
    try:
        return "".join(f"\n  rank {rank}: {heartbeat}" for rank, heartbeat in Heartbeats(store).all_ranks())
    except RuntimeError:
        return ""


def enter(environment: RankEnvironment, timeout: float, number: int = 1) -> World:
    """Opens the store of job ``number``. Without a store no other rank can be told, so this process ends."""
    try:
        return open_store(environment, timeout, number)
    except WireError as error:
        warn(str(error))
        leave(error.exit_code)


def fail(error: BaseException, world: World, rank: int, role: str, callbacks: Sequence[Callback] = ()) -> NoReturn:
    """Ends this process because of an error in ``rank``, usually its own, with the exit code of the first failure in
    the job. Ends torchrun too if the failure is not retryable."""
    code = report_failure(error, world.store, world.job_store, rank, role, callbacks)
    try:
        is_first = world.store.add(f"failed/{world.environment.node}", 1) == 1  # on this machine
    except RuntimeError:  # the store is gone
        is_first = False
    if is_first:
        stop_torchrun(world.environment, code)
    leave(code, callbacks)


def leave(code: int, callbacks: Sequence[Callback] = ()) -> NoReturn:
    """Ends the process at once: threads that wait in a receive cannot be stopped. Calls ``callbacks`` first, unless the
    run has ended without an error."""
    drop_unwritten()
    if code:
        for callback in callbacks:
            callback.on_exit()
    os._exit(code)
