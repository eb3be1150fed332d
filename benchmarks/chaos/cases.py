"""Trials that may hang, take all memory, or kill their process: they are carried out in a child that is watched."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SECONDS = 30.0  # most that a trial may take
MOST_BYTES = 300 << 20  # and most resident memory that it may add for a moment
WATCHED_BYTES = 2 << 30  # when it is ended from outside
SECONDS_BETWEEN_LOOKS = 0.2
READY_SECONDS = 120.0


class BrokenPromise(Exception):
    """What must not happen has happened."""


@dataclass(frozen=True)
class Case:
    """What is tried, in words, and the trial itself, which raises BrokenPromise, or anything else, if it fails."""

    what: str
    run: Callable[[], None]


MakeCase = Callable[[random.Random, Path], Case]
Families = Mapping[str, MakeCase]  # by name; each makes its cases from random draws in an empty folder
MakeFamilies = Callable[[Path], Families]  # in the child, from the folder that all trials share


@dataclass(frozen=True)
class Trial:
    """Case ``number`` of a family; together with the seed it is the same case every time."""

    family: str
    number: int


@dataclass(frozen=True)
class Outcome:
    """How a trial went: ``broken`` says which promise was not kept, and is None if all were.

    ``bytes`` is the peak of the child's resident memory above what it was before the trial.
    """

    trial: Trial
    what: str
    broken: str | None
    seconds: float
    bytes: int


def carry_out(trials: Iterable[Trial], seed: int, make_families: MakeFamilies, shared: Path) -> Iterator[Outcome]:
    """The outcomes, one after another; a child that does not survive a trial is replaced for the next."""
    child = None
    try:
        for trial in trials:
            child = child or _Child(seed, make_families, shared)
            outcome = child.carry_out(trial)
            yield outcome
            if child.is_lost:
                child.stop()
                child = None
    finally:
        if child is not None:
            child.stop()


class _Child:
    """The process, seen from outside."""

    def __init__(self, seed: int, make_families: MakeFamilies, shared: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, seed, make_families, shared), daemon=True)
        self._process.start()
        theirs.close()
        self.is_lost = False
        if self._next(READY_SECONDS) != "ready":
            raise RuntimeError("the process that carries out the trials could not be started")

    def carry_out(self, trial: Trial) -> Outcome:
        started = time.perf_counter()
        self._connection.send(trial)
        what = self._next(SECONDS)
        ended = None if self.is_lost else self._next(SECONDS)
        broken, grown = (ended[0], ended[1]) if isinstance(ended, tuple) else (self._fate(), 0)
        return Outcome(trial, str(what), broken, time.perf_counter() - started, grown)

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _next(self, seconds: float) -> Any:
        """What the child says next; if it says nothing in time, or ends, or takes too much memory, it is lost."""
        deadline = time.monotonic() + seconds
        try:
            while not self._connection.poll(SECONDS_BETWEEN_LOOKS):
                if time.monotonic() > deadline or _resident_bytes(self._process.pid) > WATCHED_BYTES:
                    break
            else:
                return self._connection.recv()
        except (EOFError, OSError):
            pass
        self.is_lost = True
        return None

    def _fate(self) -> str:
        """Why the child is lost."""
        self._process.join(1.0)
        code = self._process.exitcode
        if code is not None:
            return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if _resident_bytes(self._process.pid) > WATCHED_BYTES:
            return f"took more than {WATCHED_BYTES >> 20} MiB"
        return f"was not done after {SECONDS:g} s"


def _work(connection: Connection, seed: int, make_families: MakeFamilies, shared: Path) -> None:
    """The process, seen from inside: for every trial it says what it will do, and then how that went."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # libraries in C complain there
    families = make_families(shared)
    folder = shared / "trial"
    connection.send("ready")
    while True:
        trial = connection.recv()
        shutil.rmtree(folder, ignore_errors=True)  # of a trial that its process has not survived
        folder.mkdir()
        draws = random.Random(f"{seed}/{trial.family}/{trial.number}")  # noqa: S311  # no secret
        case = families[trial.family](draws, folder)
        connection.send(case.what)
        before = fresh_peak_bytes()
        broken = _broken(case)
        grown = peak_bytes() - before
        if broken is None and grown > MOST_BYTES:
            broken = f"took {grown >> 20} MiB; at most {MOST_BYTES >> 20} are allowed"
        connection.send((broken, grown))


def _broken(case: Case) -> str | None:
    try:
        case.run()
    except BrokenPromise as error:
        return str(error)
    except BaseException as error:  # whatever ends a process by surprise
        return f"{type(error).__name__}: {error!s:.300}"
    return None


def fresh_peak_bytes() -> int:
    """Lets the system forget the peak so far; then it is the resident memory of now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    """Of this process alone: ru_maxrss would be no less than that of whoever started it, and could not be reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def _resident_bytes(pid: int | None) -> int:
    """Of another process; 0 if that cannot be known."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0
