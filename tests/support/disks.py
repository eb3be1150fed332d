"""Disks for tests that are really full, really read-only, or that refuse long files."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE


class SmallDisk:
    """A file system of its own, in memory. ``path`` is where it is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def remount(self, options: str) -> None:
        """Such as ``size=8m`` or ``ro``."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True, timeout=PATIENCE)


@contextmanager
def small_disk(path: Path, kibibytes: int) -> Iterator[SmallDisk]:
    """A disk at ``path`` with so much room; the test is skipped where this process may not mount one."""
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this process may not mount a small disk: {getattr(error, 'stderr', error)}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=PATIENCE)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses this process longer files, as a quota does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
