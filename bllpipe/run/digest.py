"""Digests of parameters and buffers, so that two runs can be compared to the last bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def part_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the tensors in the order of their names: name, dtype, shape, and the bytes of the values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def state_sha256(part_digests: Sequence[str]) -> str:
    """SHA-256 over the digests of all ranks, in the order given."""
    return hashlib.sha256("\n".join(part_digests).encode()).hexdigest()
