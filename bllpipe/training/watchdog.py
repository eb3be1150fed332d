"""A thread beside the loops of every process: it receives signals, brings about an agreed stop, posts heartbeats, and
ends the run when a rank hangs.

A heartbeat goes out several times a second, whatever the loops do. The thread watches its own actors, one of which may
compute for too long, and the next rank, whose heartbeats end when its process is stopped, or holds the interpreter's
lock. An actor that waits too long for a message finds that out by itself.

Python runs signal handlers in the main thread, between two of its instructions; a receive in C++ delays them. But the
byte that ``signal.set_wakeup_fd`` sends leaves at once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bllpipe.errors import BllpipeError, WireError
from bllpipe.messages import Store
from bllpipe.training.run_schedule import StopAgreement
from bllpipe.utils.console import say

if TYPE_CHECKING:
    from bllpipe.training.worker import Actor, Worker

LOOK_SECONDS = 0.2
STOPPED_SECONDS = 2.0  # between two looks: this process was stopped, or held by its interpreter's lock
Fail = Callable[[BllpipeError, int], None]  # and the rank it is about
LEFT = -1  # the number of a posting after which there are none
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PATIENCE_SECONDS = 3.0  # a signal within these of another is the same one, sent by the terminal and the launcher both


class Watchdog:
    """Watches the ranks ``roles`` describes, from ``rank``; ``fail`` and ``leave`` end the process.

    ``store`` must be a connection of its own: a loop may be waiting in another one.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        roles: Sequence[str],
        ending: StopAgreement,
        timeout: float,
        fail: Fail,
        leave: Callable[[int], None],
    ) -> None:
        self._store, self._rank, self._roles, self.ending = store, rank, roles, ending
        self._timeout, self._fail, self._leave = timeout, fail, leave
        self._signals, self._sightings, self._staleness = StopSignals(), Heartbeats(store), Staleness()
        self._parts: Sequence[Worker] = ()
        self._heard: float | None = None  # when the first signal came
        self.exit_code = 0  # 128 and that signal, if it has ended the run
        self._posted_stop = False
        self._continued = 0.0  # when this process was last found to have been stopped, as by Ctrl-Z
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def __enter__(self) -> Watchdog:
        self._signals.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=2)
        self._signals.__exit__(kind, error, trace)

    def look_at(self, parts: Sequence[Worker]) -> None:
        """From now on the actors of ``parts`` are looked at too."""
        self._parts = parts

    def _watch(self) -> None:
        looks, looked = 0, time.perf_counter()
        try:
            while not self._over.is_set():
                heard = self._signals.wait(LOOK_SECONDS)
                now = time.perf_counter()
                if now - looked > STOPPED_SECONDS:
                    self._continued = now
                looked = now
                if heard is not None:
                    self._hear(heard.name, 128 + heard)
                self._bring_about_stop()
                looks += 1
                self._sightings.post(self._rank, Heartbeat(looks, os.getpid(), self._own()))
                self._find_stuck()
            self._sightings.post(self._rank, Heartbeat(LEFT))
        except RuntimeError:  # the store is gone with its launcher, and so will we be
            return

    def _hear(self, name: str, code: int) -> None:
        """The first signal asks for a stop. After a failure there is nothing to stop for, and who repeats a signal does
        not want to wait."""
        now = time.monotonic()
        if self._store.check(["failure"]) or (self._heard is not None and now - self._heard > PATIENCE_SECONDS):
            self._leave(code)
        if self._heard is None:
            self._heard, self.exit_code = now, code
            self._store.compare_set("stop/asked", "", f"{name} at rank {self._rank}")

    def _bring_about_stop(self) -> None:
        """Freezes when anybody has asked to stop, and decides when all are frozen."""
        if self.ending.is_decided or not self._store.check(["stop/asked"]):
            return
        keys = [f"stop/at/{rank}" for rank in range(len(self._roles))]
        if not self._posted_stop:
            begun = self.ending.freeze(self._store.get("stop/asked").decode())
            self._store.set(keys[self._rank], str(begun))
            self._posted_stop = True
        if self._store.check(keys):
            self.ending.decide(max(int(self._store.get(key)) for key in keys))
            if self._rank == 0:
                how = (
                    "with a checkpoint" if self.ending.saves else "without a checkpoint (checkpoint.every_steps=never)"
                )
                say(f"\nbllpipe: {self.ending.reason}: stopping {how}", sys.stderr)

    def _own(self) -> list[ActorStatus]:
        return [ActorStatus.of(actor) for part in self._parts for actor in part.actors]

    def _find_stuck(self) -> None:
        for sighting in self._own():
            running = min(sighting.seconds, time.perf_counter() - self._continued)
            if not sighting.edge and running > self._timeout:
                self._fail(self._stuck(f"{sighting}"), self._rank)
        other = (self._rank + 1) % len(self._roles)
        posting = self._sightings.of(other)
        seconds = self._staleness.look(posting.number) * LOOK_SECONDS
        if other != self._rank and posting.number != LEFT and seconds > self._timeout:
            end_sibling(posting.pid)
            error = self._stuck(f"not heard of for {seconds:.0f} s; last seen: {posting}")
            self._fail(error, other)

    def _stuck(self, how: str) -> WireError:
        return WireError(
            f"{how}. It hangs, or was stopped; if a step may take more than {self._timeout:g} s, raise "
            f"backend.timeout_seconds"
        )


def end_sibling(pid: int) -> None:
    """Kills a process that hangs, which hears nothing else; only one that the same launcher has started."""
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if parent == os.getppid():
            os.kill(pid, signal.SIGKILL)
    except OSError:  # on another machine, or gone
        return


@dataclass(frozen=True)
class ActorStatus:
    """One actor: its round, the edge that it waits at (empty if it computes), and for how many seconds."""

    actor: str
    at: str
    edge: str
    seconds: float

    def __str__(self) -> str:
        doing = f"waiting at {self.edge}" if self.edge else "computing"
        return f"{self.actor} at {self.at}, {doing} for {self.seconds:.0f} s"

    @classmethod
    def of(cls, actor: Actor) -> ActorStatus:
        """Where ``actor`` is now."""
        meters = [port.meter for port in actor.stopwatch.ports]
        waiting = next((meter for meter in meters if meter.is_waiting), None)
        since = max([actor.entered, *(meter.ended for meter in meters)]) if waiting is None else waiting.began
        at = str(actor.entry) if actor.entry else "the start"
        return cls(actor.name, at, waiting.edge if waiting else "", time.perf_counter() - since if since else 0.0)


@dataclass(frozen=True)
class Heartbeat:
    """What a rank has said last: which posting it was, 0 before the first, its process, and where its actors are."""

    number: int = 0
    pid: int = 0
    actors: Sequence[ActorStatus] = ()

    def __str__(self) -> str:
        return "; ".join(map(str, self.actors)) or ("gone" if self.number == LEFT else "at its start")


class Heartbeats:
    """The postings of all ranks, in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def post(self, rank: int, posting: Heartbeat) -> None:
        """What ``rank`` says now."""
        self._store.set(f"seen/{rank}", json.dumps(asdict(posting)))

    def of(self, rank: int) -> Heartbeat:
        """What ``rank`` has said last."""
        if not self._store.check([f"seen/{rank}"]):
            return Heartbeat()
        record = json.loads(self._store.get(f"seen/{rank}"))
        return Heartbeat(record["number"], record["pid"], [ActorStatus(**actor) for actor in record["actors"]])

    def all_ranks(self) -> Iterator[tuple[int, Heartbeat]]:
        """Every rank that has posted, and what."""
        for rank in count():
            posting = self.of(rank)
            if posting.number == 0:
                return
            yield rank, posting


class Staleness:
    """How long nothing new was posted, counted in looks at it: time in which the observer itself was stopped does not
    count."""

    def __init__(self) -> None:
        self._last: object = None
        self._looks = 0

    def look(self, number: object) -> int:
        """The number of looks since it was another one."""
        self._looks = self._looks + 1 if number == self._last else 0
        self._last = number
        return self._looks


class StopSignals:
    """While it is entered, the first of STOPPING ends nothing but comes out of ``wait``. Who repeats it does not
    want to wait: that one is a KeyboardInterrupt.

    Only a main thread can receive signals; entered in another one it just waits.
    """

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._out.setblocking(False)
        self._in.setblocking(False)
        self._first: float | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._fd_before = -1

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as nohup has it
            heard = [number for number in STOPPING if not (number == signal.SIGHUP and ignored)]
            self._before = {number: signal.signal(number, self._handle) for number in heard}
            self._fd_before = signal.set_wakeup_fd(self._in.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before:
            signal.set_wakeup_fd(self._fd_before)
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._out.close()
        self._in.close()

    def wait(self, seconds: float) -> signal.Signals | None:
        """The next signal that asks to stop, or None when none came within ``seconds``."""
        try:
            ready, _, _ = select.select([self._out], [], [], seconds)
            numbers = self._out.recv(64) if ready else b""
        except (OSError, ValueError):  # left meanwhile
            return None
        return next((signal.Signals(number) for number in numbers if number in STOPPING), None)

    def _handle(self, number: int, frame: object) -> None:
        """In the main thread, when it comes to it. Without it the kernel's default would end the process."""
        now = time.monotonic()
        if self._first is not None and now - self._first > PATIENCE_SECONDS:
            raise KeyboardInterrupt
        self._first = self._first or now
