"""Memory of this process."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

STATUS = Path("/proc/self/statm")


def resident_bytes() -> int | None:
    """Resident memory now; None where the system does not tell."""
    return int(STATUS.read_text().split()[1]) * resource.getpagesize() if STATUS.exists() else None


def peak_memory_bytes() -> int:
    """Most memory this process ever held: of its GPU if it has one, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
