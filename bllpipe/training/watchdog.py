"""A thread in every process: it posts heartbeats, ends the run when a rank hangs, and stops it after a signal
(training/stopping.py).

The thread posts a heartbeat several times a second, independently of the loops. It watches its own actors, one of which
may compute for too long, and the next rank, whose heartbeats end when its process is stopped or holds the interpreter's
lock. An actor that waits too long for a message raises the timeout itself.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from bllpipe.errors import BllpipeError, WireError
from bllpipe.messages import Store
from bllpipe.training.stopping import GracefulStop, StopAgreement, StopSignals

if TYPE_CHECKING:
    from bllpipe.training.worker import Actor, Worker

LOOK_SECONDS = 0.2
STOPPED_SECONDS = 2.0  # between two looks: this process was stopped, or held by its interpreter's lock
Fail = Callable[[BllpipeError, int], None]  # and the rank that fails
LEFT = -1  # the number of a rank's last heartbeat


class Watchdog:
    """Watches the ranks of a job, whose roles are ``roles``, from ``rank``; ``fail`` and ``leave`` end the process.
    Without ``leave`` a second signal raises KeyboardInterrupt in the main thread instead.

    ``store`` must be a separate connection: a loop may be waiting in another one.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        roles: Sequence[str],
        agreement: StopAgreement,
        timeout: float,
        fail: Fail,
        leave: Callable[[int], None] | None,
    ) -> None:
        self._store, self._rank, self._roles = store, rank, roles
        self._timeout, self._fail = timeout, fail
        self._signals, self._heartbeats, self._staleness = StopSignals(), Heartbeats(store), Staleness()
        self.stop = GracefulStop(store, rank, len(roles), agreement, leave or self._interrupt)
        self._workers: Sequence[Worker] = ()
        self._running = RunningTime(time.perf_counter())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

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

    def watch(self, workers: Sequence[Worker]) -> None:
        """From now on also watches the actors of ``workers``."""
        self._workers = workers

    def _watch(self) -> None:
        looks = 0
        try:
            while not self._over.is_set():
                received = self._signals.wait(LOOK_SECONDS)
                if received is not None:
                    self.stop.on_signal(received, looks)
                self.stop.agree()
                looks += 1
                self._heartbeats.post(self._rank, Heartbeat(looks, os.getpid(), self._own()))
                self._find_stuck()
            self._heartbeats.post(self._rank, Heartbeat(LEFT))
        except RuntimeError:  # the store is gone with its launcher, which ends this process too
            return

    def _interrupt(self, code: int) -> None:
        self._signals.interrupt()

    def _own(self) -> list[ActorStatus]:
        return [ActorStatus.of(actor) for worker in self._workers for actor in worker.actors]

    def _find_stuck(self) -> None:
        own = self._own()
        uninterrupted = self._running.look(time.perf_counter())  # after the times in ``own``, which it limits
        for status in own:
            if not status.edge and min(status.seconds, uninterrupted) > self._timeout:
                self._fail(self._stuck(f"{status}"), self._rank)
        other = (self._rank + 1) % len(self._roles)
        heartbeat = self._heartbeats.of(other)
        seconds = self._staleness.look(heartbeat.number) * LOOK_SECONDS
        if other != self._rank and heartbeat.number != LEFT and seconds > self._timeout:
            end_sibling(heartbeat.pid)
            error = self._stuck(f"no heartbeat for {seconds:.0f} s; last seen: {heartbeat}")
            self._fail(error, other)

    def _stuck(self, how: str) -> WireError:
        return WireError(
            f"{how}. It hangs, or was stopped; if a step may take more than {self._timeout:g} s, raise "
            f"backend.timeout_seconds"
        )


def end_sibling(pid: int) -> None:
    """Kills a process that hangs: it handles no other signal. Only a process of the same launcher."""
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
    """The last heartbeat of a rank: its number, 0 before the first, its process, and where its actors are."""

    number: int = 0
    pid: int = 0
    actors: Sequence[ActorStatus] = ()

    def __str__(self) -> str:
        return "; ".join(map(str, self.actors)) or ("gone" if self.number == LEFT else "at its start")


class Heartbeats:
    """The last heartbeats of all ranks, in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def post(self, rank: int, heartbeat: Heartbeat) -> None:
        """Replaces the heartbeat of ``rank``."""
        self._store.set(f"seen/{rank}", json.dumps(asdict(heartbeat)))

    def of(self, rank: int) -> Heartbeat:
        """The last heartbeat of ``rank``."""
        if not self._store.check([f"seen/{rank}"]):
            return Heartbeat()
        record = json.loads(self._store.get(f"seen/{rank}"))
        return Heartbeat(record["number"], record["pid"], [ActorStatus(**actor) for actor in record["actors"]])

    def all_ranks(self) -> Iterator[tuple[int, Heartbeat]]:
        """Every rank that has posted a heartbeat, with the last one."""
        for rank in count():
            heartbeat = self.of(rank)
            if heartbeat.number == 0:
                return
            yield rank, heartbeat


class RunningTime:
    """For how long this process has run without being stopped, as by Ctrl-Z, found from the time between two looks."""

    def __init__(self, now: float) -> None:
        self._looked = self._continued = now

    def look(self, now: float) -> float:
        """Seconds from the last stop, or from the first look, to ``now``. Times that were taken before ``now`` have no
        stop in them that this look did not find."""
        if now - self._looked > STOPPED_SECONDS:
            self._continued = now
        self._looked = now
        return now - self._continued


class Staleness:
    """How long no new heartbeat was posted, counted in looks: time in which the observer itself was stopped does not
    count."""

    def __init__(self) -> None:
        self._last: object = None
        self._looks = 0

    def look(self, number: object) -> int:
        """The number of looks since the number changed."""
        self._looks = self._looks + 1 if number == self._last else 0
        self._last = number
        return self._looks
