"""Where everybody is: what a rank tells the others of itself, and how it notices that one of them, or it, is stuck.

A thread posts its place several times a second, whatever the loops do. It keeps an eye on two: on its own actors,
of which one may compute for too long, and on the next rank, whose postings end when its process is stopped, or holds
the interpreter's lock. Who waits for a message too long finds that out by itself.
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

LEFT = -1  # the number of a posting after which there are none


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


@dataclass(frozen=True)
class Posting:
    """What a rank has said last: which posting it was, 0 before the first, its process, and where its actors are."""

    number: int = 0
    pid: int = 0
    actors: Sequence[Sighting] = ()

    def __str__(self) -> str:
        return "; ".join(map(str, self.actors)) or ("gone" if self.number == LEFT else "at its start")


class Sightings:
    """The postings of all ranks, in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def post(self, rank: int, posting: Posting) -> None:
        """What ``rank`` says now."""
        self._store.set(f"seen/{rank}", json.dumps(asdict(posting)))

    def of(self, rank: int) -> Posting:
        """What ``rank`` has said last."""
        if not self._store.check([f"seen/{rank}"]):
            return Posting()
        record = json.loads(self._store.get(f"seen/{rank}"))
        return Posting(record["number"], record["pid"], [Sighting(**actor) for actor in record["actors"]])

    def everybody(self) -> Iterator[tuple[int, Posting]]:
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
