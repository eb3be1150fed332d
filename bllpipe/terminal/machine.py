"""What this machine is, beside what every run notes in its env.json."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.distributed as dist

from bllpipe.run.directory import environment
from bllpipe.wire.environment import settings

PACKAGES = ("torchvision", "numpy", "pillow", "pyyaml", "scikit-learn", "safetensors", "prometheus-client", "deepspeed")


def describe() -> dict[str, Any]:
    """The facts of ``environment()``, and versions, backends, threads, memory and variables."""
    return {
        **environment(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "nccl": _nccl(),
        "gloo": dist.is_available() and dist.is_gloo_available(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "variables": settings(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _nccl() -> str | None:
    if not (dist.is_available() and dist.is_nccl_available() and torch.cuda.is_available()):
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def _driver() -> str | None:
    """The driver of the GPUs, as its own tool says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else None
