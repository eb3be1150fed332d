"""What became of a rank's shares of the checkpoints: when the last was written, how long it took, how many failed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Saves:
    """Counts of this process; ``written_at`` is a time since the epoch, ``last_seconds`` what the last share took."""

    number: int = 0
    failures: int = 0
    step: int = 0
    written_at: float | None = None
    last_seconds: float = 0.0
    seconds: float = 0.0

    @contextmanager
    def writing(self, step: int) -> Iterator[None]:
        """Takes note of what happens inside: the share of ``step`` is written, or an error is raised."""
        began = time.perf_counter()
        try:
            yield
        except BaseException:
            self.failures += 1
            raise
        finally:
            self.last_seconds = time.perf_counter() - began
            self.seconds += self.last_seconds
        self.number, self.step, self.written_at = self.number + 1, step, time.time()
