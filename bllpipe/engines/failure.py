"""How a run ends badly: one message from one rank, a status file that says why, and no process left waiting."""

from __future__ import annotations

import os
import sys
import traceback
import uuid
from pathlib import Path
from typing import NoReturn

from bllpipe.errors import BllpipeError, WireError
from bllpipe.metrics.discovery import mark_failed
from bllpipe.ports import Store
from bllpipe.run.directory import RunDirectory
from bllpipe.run.rank import RoundError
from bllpipe.run.sightings import Sightings


def cause_of(error: BaseException) -> BaseException:
    """What really happened, without the round that it happened in."""
    return error.__cause__ if isinstance(error, RoundError) and error.__cause__ else error


def explain(error: BaseException) -> str:
    """The message for people; a traceback only for what bllpipe itself did wrong."""
    error = cause_of(error)
    if isinstance(error, BllpipeError):
        return str(error)
    return "this is a fault in bllpipe or in a module of yours\n" + "".join(traceback.format_exception(error))


def exit_code(error: BaseException) -> int:
    cause = cause_of(error)
    return cause.exit_code if isinstance(cause, BllpipeError) else 1


def report_failure(error: BaseException, store: Store, job_store: Store, rank: int, role: str) -> None:
    """Prints the error and writes status.json, unless another rank failed first.

    When one rank fails its neighbours fail too, for want of messages. Only the first is worth reading, so whoever
    claims the key speaks, and the others are silent.
    """
    claim = uuid.uuid4().hex
    try:
        if store.compare_set("failure", "", claim).decode() != claim:
            return
        directory = job_store.get("directory").decode() if job_store.check(["directory"]) else None
    except RuntimeError:  # the store is gone with its launcher: better twice than not at all
        directory = None
    print(f"bllpipe: rank {rank} ({role}): {explain(error)}{_last_seen(error, store)}", file=sys.stderr, flush=True)
    if directory is not None:
        step = {"step": error.entry.step} if isinstance(error, RoundError) else {}
        facts = {**step, "rank": rank, "role": role, "reason": explain(error).strip()}
        RunDirectory(Path(directory)).write_status("failed", **facts)
        mark_failed(RunDirectory(Path(directory)), type(cause_of(error)).__name__)


def _last_seen(error: BaseException, store: Store) -> str:
    """Where everybody was, for whoever looks for the reason of a message that did not come."""
    if not isinstance(cause_of(error), WireError):
        return ""
    try:
        return "".join(f"\n  rank {rank}: {posting}" for rank, posting in Sightings(store).everybody())
    except RuntimeError:
        return ""


def leave(code: int) -> NoReturn:
    """Ends the process at once: threads that sit in a receive cannot be asked to stop."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
