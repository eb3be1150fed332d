"""A module ``wandb`` that writes every call to a file, and blocks, fails or dies as a test needs it. It stands in for
the network and the server of a tracker; the process, the files and the run are real."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bllpipe.tools.monitoring import tracking
from tests.support.jobs import REPOSITORY
from tests.support.waiting import PATIENCE

SOURCE = """
import json, os, signal, sys, threading, types

CALLS, CONDUCT = {calls!r}, {conduct!r}

def note(*call):
    with open(CALLS, "a") as file:
        file.write(json.dumps(call) + "\\n")

def act(when):
    if CONDUCT == f"{{when}} blocks":
        threading.Event().wait()
    if CONDUCT == f"{{when}} raises":
        raise OSError("no route to the server")
    if CONDUCT == f"{{when}} exits":
        sys.exit("the library has left")
    if CONDUCT == f"{{when}} dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if CONDUCT == f"{{when}} recovers" and not os.path.exists(CALLS + ".refused"):
        open(CALLS + ".refused", "w").close()
        raise OSError("the server is away for a moment")

class Run:
    def __init__(self):
        self.summary = {{}}
    def define_metric(self, *names, **others):
        pass
    def log(self, values):
        act("log")
        note("log", values)
    def finish(self, exit_code):
        act("finish")
        note("finish", exit_code, self.summary)

def setup():
    return types.SimpleNamespace(settings=types.SimpleNamespace(project=None, mode="online"))

def Settings(**settings):
    return settings

def init(**arguments):
    note("init", {{key: arguments[key] for key in ("id", "name", "resume", "config")}})
    act("init")
    return Run()
"""


class RecordingTracker:
    """Installs the module in ``folder`` for this process and those that it starts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, conduct: str = "works") -> None:
        self._calls = folder / "calls.jsonl"
        (folder / "wandb.py").write_text(SOURCE.format(calls=str(self._calls), conduct=conduct))
        monkeypatch.setattr(tracking, "LAST_SECONDS", PATIENCE)
        monkeypatch.setattr(tracking, "STOP_SECONDS", PATIENCE)
        monkeypatch.syspath_prepend(str(folder))
        self.path = os.pathsep.join([str(folder), str(REPOSITORY)])
        monkeypatch.setenv("PYTHONPATH", self.path)

    def calls(self, name: str) -> list[list[Any]]:
        """The arguments of all calls of ``name``, in order."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return [call[1:] for call in map(json.loads, lines) if call[0] == name]

    def curve(self, key: str) -> list[tuple[int, float]]:
        """Step and value of every point of a curve."""
        values = [arguments[0] for arguments in self.calls("log")]
        return [(each["step"], each[key]) for each in values if key in each]
