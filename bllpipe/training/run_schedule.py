"""The schedule of a run: the one list of rounds that every rank follows, and the step at which all ranks agree to stop.

When a stop is asked for the ranks are at different rounds, and some wait for messages of others. So

  freeze   every rank says how far the furthest of its actors has got, and lets none of them begin another round
  decide   the furthest of all ranks is where the run ends
           all ranks go on to there, write a checkpoint and leave

No rank has passed that round, and every rank gets the messages that it needs to reach it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bllpipe.config import Config
from bllpipe.config.validation import check_warmup
from bllpipe.errors import ConfigError, WireError
from bllpipe.messages import Round

AGREEMENT_SECONDS = 15.0


@dataclass(frozen=True)
class RunSchedule:
    """Lengths of a run, in steps and images. Tests and checkpoints come at the end too; None: never."""

    total_steps: int
    last_step: int
    steps_per_epoch: int
    batch_size: int
    num_test: int
    evaluate_every: int | None
    save_every: int | None

    @classmethod
    def of(cls, config: Config, num_train: int, num_test: int) -> RunSchedule:
        """The plan of a run on ``num_train`` images; raises ConfigError when not even one batch can be filled, or
        the warm-up takes longer than the run."""
        batch_size = config.data.batch_size
        if batch_size > num_train:
            raise ConfigError(
                f"data.batch_size is {batch_size}, but {config.data.name} has only {num_train} training images; "
                f"use --set data.batch_size={num_train} or less"
            )
        per_epoch = num_train // batch_size
        total = config.steps or config.epochs * per_epoch
        check_warmup(config, total)
        evaluate, save = config.evaluate.every_epochs, config.checkpoint.every_steps
        return cls(
            total_steps=total,
            last_step=min(config.stop_at or total, total),
            steps_per_epoch=per_epoch,
            batch_size=batch_size,
            num_test=num_test,
            evaluate_every=evaluate * per_epoch if isinstance(evaluate, int) else None,
            save_every=per_epoch if save is None else save if isinstance(save, int) else None,
        )

    def rounds(self, start: int = 0, tested: bool = True) -> Iterator[Round]:
        """Every round after ``start`` finished training steps, in order; what follows the last of these comes first,
        unless it is ``tested``."""
        if not tested:
            yield from self._after(start, (start - 1) // self.steps_per_epoch)
        for step in range(start, self.last_step):
            epoch, batch = divmod(step, self.steps_per_epoch)
            yield Round("train", step, epoch, batch, self.batch_size)
            yield from self._after(step + 1, epoch)

    def _after(self, done: int, epoch: int) -> Iterator[Round]:
        """What follows when ``done`` steps are finished: a test, a checkpoint, both, or nothing."""
        if self.evaluate_every is not None and (done == self.total_steps or _is_multiple(done, self.evaluate_every)):
            yield from self._test(done, epoch)
        if done == self.last_step or _is_multiple(done, self.save_every or 0):
            yield Round("end" if self.save_every is None else "save", done, epoch)

    def _test(self, done: int, epoch: int) -> Iterator[Round]:
        for batch, first in enumerate(range(0, self.num_test, self.batch_size)):
            yield Round("evaluate", done, epoch, batch, min(self.batch_size, self.num_test - first))
        yield Round("score", done, epoch)


def _is_multiple(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


class StopAgreement:
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

    def until_stop(self, actor: str, rounds: Iterable[Round], saved: bool) -> Iterator[Round]:
        """What ``actor`` has to do of ``rounds``. A stop puts a checkpoint behind the last one, if there is none yet;
        ``saved`` says whether the run begins with one."""
        last: Round | None = None
        for number, entry in enumerate(rounds):
            self._begun[actor] = number + 1  # before the question: whoever freezes has either seen it, or is seen
            if self._frozen and number >= self._agreed():
                self.stopped = stop_checkpoint(last, entry, self.saves)
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


def stop_checkpoint(last: Round | None, following: Round, saves: bool = True) -> Round:
    """The last round of a stop before ``following``: how many steps are done, and whether a test is left to do."""
    epoch = following.epoch if last is None else last.epoch
    tested = following.phase not in ("evaluate", "score")
    return Round("save" if saves else "end", following.step, epoch, tested=tested)
