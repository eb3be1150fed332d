"""Readers that keep no promise, for a child to try; it imports little, so that the child starts soon."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from benchmarks.chaos.cases import BrokenPromise, Case, Families
from benchmarks.chaos.hostile import refused
from bllpipe.errors import ConfigError


def families(shared: Path) -> Families:
    """One case a family."""
    cases = [
        refused("good", good),
        refused("accepts", lambda: None),
        refused("crashes", lambda: [][1]),
        Case("breaks", breaks),
        Case("leaves", lambda: os._exit(3)),
        Case("dies", lambda: os.kill(os.getpid(), signal.SIGKILL)),
        Case("hangs", hangs),
        Case("grows", grows),
    ]
    return {case.what: lambda draws, folder, case=case: case for case in cases}  # type: ignore[misc]  # a default


def good() -> None:
    raise ConfigError("no")


def breaks() -> None:
    raise BrokenPromise("the wrong one was taken")


def hangs() -> None:
    threading.Event().wait(600)


def grows() -> None:
    bytearray(b"x" * (400 << 20))
