"""Where everybody is: what a rank tells the others of itself, and how it notices that one of them, or it, is stuck.

A rank's thread posts its place every second, whatever the loops do. It keeps an eye on two: on its own actors, of which
one may compute for too long, and on the next rank, whose postings end when its process is stopped, or holds the
interpreter's lock. Who waits for a message too long finds that out by itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import TYPE_CHECKING

from bllpipe.ports import Store

if TYPE_CHECKING:
    from bllpipe.run.rank import Actor

LEFT = "left"


@dataclass(frozen=True)
class Sighting:
    """One actor: its round, the edge that it waits at (empty if it computes), and for how many seconds."""

    actor: str
    at: str
    edge: str
    seconds: float

    def __str__(self) -> str:
        doing = f"waiting at {self.edge}" if self.edge else "computing"
        return f"{self.actor} at {self.at}, {doing} for {self.seconds:.0f} s"

    @classmethod
    def of(cls, actor: Actor) -> Sighting:
        """Where ``actor`` is now."""
        meters = [port.meter for port in actor.stopwatch.ports]
        waiting = next((meter for meter in meters if meter.is_waiting), None)
        since = max([actor.entered, *(meter.ended for meter in meters)]) if waiting is None else waiting.began
        at = str(actor.entry) if actor.entry else "the start"
        return cls(actor.name, at, waiting.edge if waiting else "", time.perf_counter() - since if since else 0.0)


class Sightings:
    """The postings of all ranks, in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def post(self, rank: int, number: int, actors: Sequence[Sighting]) -> None:
        """Posts the ``number``-th place of ``rank``."""
        self._store.set(f"seen/{rank}", json.dumps({"number": number, "actors": [asdict(actor) for actor in actors]}))

    def leave(self, rank: int) -> None:
        """From now on nothing is expected of ``rank``."""
        self._store.set(f"seen/{rank}", json.dumps({"number": LEFT, "actors": []}))

    def of(self, rank: int) -> tuple[int | str, list[Sighting]]:
        """The number of the last posting of ``rank``, and what it said; 0 before its first."""
        if not self._store.check([f"seen/{rank}"]):
            return 0, []
        record = json.loads(self._store.get(f"seen/{rank}"))
        return record["number"], [Sighting(**actor) for actor in record["actors"]]

    def everybody(self) -> Iterator[tuple[int, str]]:
        """Every rank that has posted, and where it was then."""
        for rank in count():
            number, actors = self.of(rank)
            if number == 0:
                return
            yield rank, "; ".join(map(str, actors)) or str(number)


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
