"""Whether a run is well, as far as its files tell: for a container's health check, which asks every half a minute and
shall cost nothing. Imports no torch."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUNS = Path("runs")
WITHIN_SECONDS = 900.0  # longer than backend.timeout_seconds, after which a run that hangs ends itself


@dataclass(frozen=True)
class Health:
    """Whether all is well, and a line that says why."""

    is_well: bool
    reason: str


def add_health(commands: Any) -> None:
    """The command ``health``."""
    health = commands.add_parser("health", help="whether a run is well: exit code 0 or 1, and a line that says why")
    health.add_argument("directory", nargs="?", metavar="RUN", help="a run directory (default: the newest in runs/)")
    health.add_argument(
        "--within",
        type=float,
        default=WITHIN_SECONDS,
        metavar="SECONDS",
        help="a run that has written nothing for so long is not well (default: %(default)g)",
    )
    health.set_defaults(run=_health)


def _health(options: argparse.Namespace, words: Sequence[str]) -> int:
    directory = Path(options.directory) if options.directory else newest(RUNS)
    found = health_of(directory, options.within) if directory else Health(False, f"there is no run in {RUNS}/")
    print(found.reason)
    return 0 if found.is_well else 1


def newest(runs: Path) -> Path | None:
    """The run directory in ``runs`` that was written to last."""
    found = [path.parent for path in runs.glob("*/status.json")]
    return max(found, key=last_written, default=None)


def health_of(directory: Path, within: float) -> Health:
    """Well is a run that has completed, that was stopped in order, or that runs and has written to its metrics or
    checkpoints within so many seconds. Its process may be gone all the same: then it does not write any more."""
    status = _status(directory)
    if status is None:
        return Health(False, f"{directory} has no status.json: no run has begun there")
    if status.get("status") != "running":
        return Health(status.get("status") in ("completed", "preempted"), f"{directory}: {_ended(status)}")
    seconds = time.time() - last_written(directory)
    return Health(seconds <= within, f"{directory}: running, last sign of life {seconds:.0f} s ago")


def last_written(directory: Path) -> float:
    """When the run told something last, in seconds since the epoch; 0 if never."""
    return max(_times(directory), default=0.0)


def _times(directory: Path) -> Iterator[float]:
    for name in ("status.json", "metrics.jsonl", "checkpoints"):
        with suppress(OSError):
            yield (directory / name).stat().st_mtime


def _status(directory: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((directory / "status.json").read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _ended(status: dict[str, Any]) -> str:
    reason = str(status.get("reason") or "").strip().splitlines()
    step = f", step {status['step']}" if "step" in status else ""
    return f"{status.get('status')}{step}" + (f": {reason[0]}" if reason else "")
