"""Memory that a test may need for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.chaos.cases import fresh_peak_bytes, peak_bytes


@contextmanager
def little_memory(most: int = 32 << 20) -> Iterator[None]:
    """Fails when what is done inside adds more than ``most`` bytes to the resident memory, even if it frees them."""
    before = fresh_peak_bytes()
    yield
    added = peak_bytes() - before
    assert added < most, f"{added >> 20} MiB were needed"
