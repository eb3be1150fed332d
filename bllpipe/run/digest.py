"""Digests of parameters and buffers, so that two runs can be compared to the last bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def part_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the tensors in the order of their names: name, dtype, shape, and the bytes of the values.

    Each head is one line of JSON, so that no name can be mistaken for the bytes of another tensor.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = plain(tensors[name])
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def state_sha256(part_digests: Sequence[str]) -> str:
    """SHA-256 (hex) over the digests of all parts, in the order given."""
    return hashlib.sha256("\n".join(part_digests).encode()).hexdigest()


def plain(tensor: Tensor) -> Tensor:
    """The values alone, one after another in the memory of the CPU: no autograd, no strides, no lazy conjugation."""
    return tensor.detach().to("cpu").contiguous().resolve_conj().resolve_neg()
