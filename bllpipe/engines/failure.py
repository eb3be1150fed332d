"""How a run ends badly: one message from one rank, a status file that says why, and no process left waiting."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
import uuid
from pathlib import Path
from typing import NoReturn

from torch.distributed import DistStoreError

from bllpipe.distributed.process_group import World, open_store
from bllpipe.distributed.torchrun import RankEnvironment, stop_torchrun
from bllpipe.errors import BllpipeError, OutputError, WireError
from bllpipe.messages import Store
from bllpipe.tools.monitoring.exporter import mark_failed
from bllpipe.tools.monitoring.live_table import release
from bllpipe.training.run_directory import RunDirectory
from bllpipe.training.watchdog import Heartbeats
from bllpipe.training.worker import RoundError
from bllpipe.utils.console import drop_unwritten, warn

SILENT_SECONDS = 5.0  # that a rank gives the one that failed first to speak


def cause_of(error: BaseException) -> BaseException:
    """What really happened, without the round that it happened in, and in our words if the store gave up."""
    cause = error.__cause__ if isinstance(error, RoundError) and error.__cause__ else error
    if not isinstance(cause, DistStoreError):
        return cause
    found = str(cause).splitlines()[0]
    return WireError(
        f"another rank has not said within backend.timeout_seconds what this one waits for ({found}). "
        f"It is gone, or has not come so far; if it needs longer, raise backend.timeout_seconds"
    )


def explain(error: BaseException) -> str:
    """The message for people; a traceback only for what bllpipe itself did wrong."""
    error = cause_of(error)
    if isinstance(error, BllpipeError):
        return str(error)
    return "this is a fault in bllpipe or in a module of yours\n" + "".join(traceback.format_exception(error))


def exit_code(error: BaseException) -> int:
    cause = cause_of(error)
    return cause.exit_code if isinstance(cause, BllpipeError) else 1


def report_failure(error: BaseException, store: Store, job_store: Store, rank: int, role: str) -> int:
    """Prints the error and writes status.json, unless another rank failed first; returns the exit code of the first.

    When one rank fails its neighbours fail too, for want of messages. Only the first is worth reading, so whoever
    claims the key speaks. The others are silent, and stay until it has spoken: the launcher ends all when one has left.
    """
    own = f"{uuid.uuid4().hex}, exit code {exit_code(error)}"
    try:
        first = store.compare_set("failure", "", own).decode()
        if first != own:
            _wait_for_words(store)
            return int(first.rpartition(" ")[2])
        directory = job_store.get("directory").decode() if job_store.check(["directory"]) else None
        _speak(error, rank, role, directory, store)
        store.set("failure/told", "yes")
    except RuntimeError:  # the store is gone with its launcher: better twice than not at all
        _speak(error, rank, role, None, store)
    return exit_code(error)


def _speak(error: BaseException, rank: int, role: str, directory: str | None, store: Store) -> None:
    place, words = f"rank {rank} ({role})", explain(error)
    warn(f"{'' if words.startswith(place) else f'{place}: '}{words}{_last_seen(error, store)}")
    if directory is not None:
        step = {"step": error.entry.step} if isinstance(error, RoundError) else {}
        facts = {**step, "rank": rank, "role": role, "reason": explain(error).strip()}
        try:
            RunDirectory(Path(directory)).write_status("failed", **facts)
            mark_failed(RunDirectory(Path(directory)), type(cause_of(error)).__name__)
        except OutputError as second:
            warn(f"rank {rank} ({role}): and {second.found}")


def _wait_for_words(store: Store) -> None:
    deadline, pause = time.monotonic() + SILENT_SECONDS, threading.Event()
    while not store.check(["failure/told"]) and time.monotonic() < deadline:
        pause.wait(0.02)


def _last_seen(error: BaseException, store: Store) -> str:
    """Where everybody was, for whoever looks for the reason of a message that did not come."""
    if not isinstance(cause_of(error), WireError):
        return ""
    try:
        return "".join(f"\n  rank {rank}: {posting}" for rank, posting in Heartbeats(store).all_ranks())
    except RuntimeError:
        return ""


def enter(environment: RankEnvironment, timeout: float, number: int = 1) -> World:
    """Opens the store of job ``number``; without one there is nobody to tell, and this process ends."""
    try:
        return open_store(environment, timeout, number)
    except WireError as error:
        warn(str(error))
        leave(error.exit_code)


def fail(error: BaseException, world: World, rank: int, role: str) -> NoReturn:
    """Ends this process because of ``rank``, mostly its own, with the exit code of the first failure in the job; and
    torchrun if a restart is pointless."""
    code = report_failure(error, world.store, world.job_store, rank, role)
    if _first_on_its_machine(world):
        stop_torchrun(world.environment, code)
    leave(code)


def _first_on_its_machine(world: World) -> bool:
    try:
        return world.store.add(f"failed/{world.environment.node}", 1) == 1
    except RuntimeError:  # the store is gone
        return False


def leave(code: int) -> NoReturn:
    """Ends the process at once: threads that sit in a receive cannot be asked to stop. What ends badly also gives the
    terminal all its rows back, as the rank that draws there may be the one that was killed."""
    drop_unwritten()
    if code:
        release(sys.stdout)
    os._exit(code)
