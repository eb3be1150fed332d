"""Tensors: named random streams, digests, strict copies from checkpoints, and a check for NaN and Inf."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor

from bllpipe.errors import CheckpointError, NonFiniteError

REPORT_DELAY_SECONDS, MAX_REPORT_DELAYS = 0.5, 8
ADVICE = "lower optimizer.lr, set optimizer.clip_norm, or check the images"


def part_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the tensors in the order of their names: name, dtype, shape, and the bytes of the values.

    Name, dtype and shape are one line of JSON, so that no name can be mistaken for the bytes of another tensor.
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
    """A contiguous CPU tensor of the values: no autograd, no lazy conjugation."""
    return tensor.detach().to("cpu").contiguous().resolve_conj().resolve_neg()


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called ``names`` of a run with ``seed``; the same on all machines."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A new CPU generator for the stream called ``names``, for example ``stream(0, "order", epoch)``."""
    return torch.Generator().manual_seed(derived_seed(seed, *names))


@torch.no_grad()
def restore(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copies the tensors that ``own`` and ``saved`` have in common into ``own``.

    Raises CheckpointError, and copies nothing, unless the shapes and dtypes of all of them are equal.
    """
    shared = [name for name in own if name in saved]
    for name in shared:
        check_same(name, own[name], saved[name])
    for name in shared:
        own[name].copy_(saved[name])


def check_same(name: str, expected: Tensor, found: Tensor) -> None:
    """Raises CheckpointError, naming the tensor, unless ``found`` has the shape and dtype of ``expected``."""
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        raise CheckpointError(
            f"the checkpoint holds {name} as {dtype_and_shape(found)}, but this run needs {dtype_and_shape(expected)}; "
            f"use the config and the data of the checkpoint, or a checkpoint of this network"
        )


def is_of_network(name: str) -> bool:
    """Whether a checkpoint's tensor of that name belongs to the network: not to a head or a feedback network, and not
    to the random backward weights of feedback alignment."""
    return name.startswith("model.") and not name.endswith(".feedback_weight")


def dtype_and_shape(tensor: Tensor) -> str:
    """dtype and shape, such as float32[10, 64]."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def require_finite(tensors: Mapping[str, Tensor], rank: int, role: str, when: str, received: Container[str]) -> None:
    """Raises NonFiniteError for the first tensor that holds NaN or Inf.

    ``received`` names the tensors that come from another rank. That rank finds the error too: a delay lets it report
    first, so that the message names where the NaN arose.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            if name in received:
                threading.Event().wait(REPORT_DELAY_SECONDS * min(rank, MAX_REPORT_DELAYS))
            place = f"rank {rank} ({role}), {when}"
            raise NonFiniteError(f"{place}: {describe(name, tensor)}; {ADVICE}")


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or Inf; always true for integers."""
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def describe(name: str, tensor: Tensor) -> str:
    """How many values are NaN or Inf; the value itself of a single one."""
    if tensor.numel() == 1:
        return f"{name} is {float(tensor.detach()):g}"
    nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return f"{name} has {nan:,} NaN and {inf:,} Inf among its {tensor.numel():,} values"
