"""A thread beside the loops of every process: hears signals, brings about an agreed stop, posts where its rank is, and
ends the run when a rank is stuck."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from bllpipe.errors import BllpipeError, WireError
from bllpipe.ports import Store
from bllpipe.run.ending import Ending
from bllpipe.run.notices import say
from bllpipe.run.rank import RankPart
from bllpipe.run.sightings import LEFT, Posting, Sighting, Sightings, Staleness
from bllpipe.run.signals import PATIENCE_SECONDS, StopSignals

LOOK_SECONDS = 0.2

Fail = Callable[[BllpipeError, int], None]  # and the rank it is about


class Watcher:
    """Watches the ranks ``roles`` describes, from ``rank``; ``fail`` and ``leave`` end the process.

    ``store`` must be a connection of its own: a loop may be waiting in another one.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        roles: Sequence[str],
        ending: Ending,
        timeout: float,
        fail: Fail,
        leave: Callable[[int], None],
    ) -> None:
        self._store, self._rank, self._roles, self.ending = store, rank, roles, ending
        self._timeout, self._fail, self._leave = timeout, fail, leave
        self._signals, self._sightings, self._staleness = StopSignals(), Sightings(store), Staleness()
        self._parts: Sequence[RankPart] = ()
        self._heard: float | None = None  # when the first signal came
        self.exit_code = 0  # 128 and that signal, if it has ended the run
        self._posted_stop = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._signals.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=2)
        self._signals.__exit__(kind, error, trace)

    def look_at(self, parts: Sequence[RankPart]) -> None:
        """From now on the actors of ``parts`` are looked at too."""
        self._parts = parts

    def _watch(self) -> None:
        looks = 0
        try:
            while not self._over.is_set():
                heard = self._signals.wait(LOOK_SECONDS)
                if heard is not None:
                    self._hear(heard.name, 128 + heard)
                self._bring_about_stop()
                looks += 1
                self._sightings.post(self._rank, Posting(looks, os.getpid(), self._own()))
                self._find_stuck()
            self._sightings.post(self._rank, Posting(LEFT))
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

    def _own(self) -> list[Sighting]:
        return [Sighting.of(actor) for part in self._parts for actor in part.actors]

    def _find_stuck(self) -> None:
        for sighting in self._own():
            if not sighting.edge and sighting.seconds > self._timeout:
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
