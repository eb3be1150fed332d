"""What the figures of a rank are read from, by another thread than the one that trains."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bllpipe.run.rank import RankPart


@dataclass(frozen=True)
class Source:
    """A rank of a run.

    ``run_name`` is the name of the run directory, ``attempt`` is new for every start. The run goes from ``start`` to
    ``last_step`` training steps, with a checkpoint every ``save_every`` (None: never); the one that it goes on
    from was written at ``resumed_from``. ``settings`` and ``versions`` are labels: names and numbers, no paths.
    """

    part: RankPart
    run_name: str
    attempt: str
    restarts: int
    start: int
    last_step: int
    save_every: int | None
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    resumed_from: float | None = None
    began: float = field(default_factory=time.time)

    @property
    def labels(self) -> dict[str, str]:
        """What tells this rank from all others."""
        return {"run": self.run_name, "rank": str(self.part.rank), "role": self.part.role}

    @property
    def path(self) -> str:
        """Where this start of the run is asked for its figures."""
        return f"/metrics/{self.attempt}"


def file_time(path: Path) -> float | None:
    """When ``path`` was written last, in seconds since the epoch; None if it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None
