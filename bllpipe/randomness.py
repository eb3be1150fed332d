"""Random streams that depend on their names alone, so that no rank has to tell another what it drew."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called ``names`` under the run's ``seed``; equal on every machine."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A fresh CPU generator for the stream called ``names``, for example ``stream(0, "order", epoch)``."""
    return torch.Generator().manual_seed(derived_seed(seed, *names))
