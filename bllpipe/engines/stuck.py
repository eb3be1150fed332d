"""Restarts that come no further. A launcher starts a failed group again as often as it may, even if it fails at the
same place every time."""

from __future__ import annotations

import json

from bllpipe.errors import NoProgressError
from bllpipe.ports import Store
from bllpipe.run.directory import RunDirectory


def check_progress(job_store: Store, attempt: int, start: int, tries: int, directory: RunDirectory) -> None:
    """Notes that ``attempt`` begins at step ``start``; NoProgressError when the last ``tries`` attempts did so too.

    They have failed, or this one would not be. One that failed before it came here got no further either.
    """
    starts: dict[str, int] = json.loads(job_store.get("starts")) if job_store.check(["starts"]) else {}
    last = [starts.get(str(number), start) for number in range(attempt - tries, attempt)]
    if attempt >= tries and all(step == start for step in last):
        raise NoProgressError(
            f"the last {tries} attempts all began at step {start} and failed before the next checkpoint, so this one "
            f"is not begun; the last failure was: {last_failure(directory)}\n"
            f"mend it and go on with --run-dir {directory.path} --resume auto; or save more often with "
            f"checkpoint.every_steps, or allow more attempts with checkpoint.tries"
        )
    job_store.set("starts", json.dumps({**starts, str(attempt): start}))


def last_failure(directory: RunDirectory) -> str:
    """What status.json says of it; of a traceback the last line."""
    status = directory.read_status()
    if status.get("status") != "failed":
        return "its ranks were killed before they could say why"
    reason = str(status.get("reason")).strip().splitlines()
    return f"rank {status.get('rank')} ({status.get('role')}): {reason[-1] if reason else 'no reason'}"
