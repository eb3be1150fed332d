"""Where a run ends: behind its last round, or earlier where all ranks agree to stop.

Where checkpoints are never written, a stop writes none either.

When somebody asks for a stop the ranks are at different rounds, and some wait for messages of others. So

  freeze   every rank says how far the furthest of its actors has got, and lets none of them begin another round
  decide   the furthest of all ranks is where the run ends
           everybody goes on to there, writes a checkpoint (if any are written) and leaves

Nobody has passed that place, and everybody gets the messages that it needs to reach it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from bllpipe.errors import WireError
from bllpipe.ports import Round

AGREEMENT_SECONDS = 15.0


class Ending:
    """The end of a run as one process knows it. Actors follow, a watcher freezes and decides. A run that ``saves``
    stops with a checkpoint."""

    def __init__(self, agreement_seconds: float = AGREEMENT_SECONDS, saves: bool = True) -> None:
        self._begun: dict[str, int] = {}
        self._frozen = False
        self._end = 0
        self._decided = threading.Event()
        self._agreement_seconds, self.saves = agreement_seconds, saves
        self.stopped: Round | None = None  # the round with which a stop ended the run
        self.reason = ""

    def follow(self, actor: str, rounds: Iterable[Round], saved: bool) -> Iterator[Round]:
        """What ``actor`` has to do of ``rounds``. A stop puts a checkpoint behind the last one, if there is none yet;
        ``saved`` says whether the run begins with one."""
        last: Round | None = None
        for number, entry in enumerate(rounds):
            self._begun[actor] = number + 1  # before the question: whoever freezes has either seen it, or is seen
            if self._frozen and number >= self._agreed():
                self.stopped = stop_round(last, entry, self.saves)
                if not self.saves or not (saved if last is None else last.phase == "save"):
                    yield self.stopped
                return
            yield entry
            last = entry

    def freeze(self, reason: str) -> int:
        """Lets no actor begin another round; the number of rounds that the furthest one has begun."""
        self.reason = self.reason or reason
        self._frozen = True
        return max(self._begun.values(), default=0)

    def decide(self, end: int) -> None:
        """The run ends after so many rounds, counted from where this process began."""
        self._end = end
        self._decided.set()

    @property
    def is_decided(self) -> bool:
        return self._decided.is_set()

    def _agreed(self) -> int:
        if not self._decided.wait(self._agreement_seconds):
            raise WireError(
                f"asked to stop ({self.reason}), but not all ranks said how far they are within "
                f"{self._agreement_seconds:g} s; the run goes on from its last checkpoint with --resume auto"
            )
        return self._end


def stop_round(last: Round | None, following: Round, saves: bool = True) -> Round:
    """The last round of a stop before ``following``: how many steps are done, and whether a test is left to do."""
    epoch = following.epoch if last is None else last.epoch
    tested = following.phase not in ("evaluate", "score")
    return Round("save" if saves else "end", following.step, epoch, tested=tested)
