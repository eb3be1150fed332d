"""The schedule of a run: the one list of rounds that every rank follows, and the step at which all ranks agree to stop.

When a stop is requested the ranks are at different rounds, and some wait for messages of others. Therefore

  freeze   every rank posts the number of rounds that its furthest actor has begun, and no actor begins another one
  decide   the run ends at the maximum over all ranks
           all ranks continue to that round, write a checkpoint and exit

No rank has passed that round, and every rank receives the messages that it needs to reach it.
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
    """The length of a run, in steps and images. Tests and checkpoints also come at the end; None: never."""

    total_steps: int
    last_step: int
    steps_per_epoch: int
    batch_size: int
    num_test: int
    evaluate_every: int | None
    save_every: int | None

    @classmethod
    def of(cls, config: Config, num_train: int, num_test: int) -> RunSchedule:
        """The schedule of a run on ``num_train`` images; raises ConfigError if there are fewer images than one
        batch, or if the warm-up is longer than the run."""
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
        """Every round after the first ``start`` training steps, in order. The test after step ``start``
        comes first, unless ``tested``."""
        if not tested:
            yield from self._after(start, (start - 1) // self.steps_per_epoch)
        for step in range(start, self.last_step):
            epoch, batch = divmod(step, self.steps_per_epoch)
            yield Round("train", step, epoch, batch, self.batch_size)
            yield from self._after(step + 1, epoch)

    def _after(self, done: int, epoch: int) -> Iterator[Round]:
        """The rounds after ``done`` training steps: a test, a checkpoint, both, or none."""
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
    """How the ranks of a run agree on its last round, in one process: its actors follow, its watchdog freezes and
    decides. A run that ``saves`` stops with a checkpoint."""

    def __init__(self, agreement_seconds: float = AGREEMENT_SECONDS, saves: bool = True) -> None:
        self._begun: dict[str, int] = {}
        self._frozen = False
        self._end = 0
        self._decided = threading.Event()
        self._agreement_seconds, self.saves = agreement_seconds, saves
        self.stopped: Round | None = None  # the round with which a stop ended the run
        self.reason = ""

    def until_stop(self, actor: str, rounds: Iterable[Round], saved: bool) -> Iterator[Round]:
        """The rounds of ``actor`` until the run stops. A stop appends a checkpoint, unless the last round is one;
        ``saved``: the run starts from a checkpoint."""
        last: Round | None = None
        for number, entry in enumerate(rounds):
            self._begun[actor] = number + 1  # before the check: freeze() either sees this round, or is seen here
            if self._frozen and number >= self._agreed():
                self.stopped = stop_checkpoint(last, entry, self.saves)
                if not self.saves or not (saved if last is None else last.phase == "save"):
                    yield self.stopped
                return
            yield entry
            last = entry

    def freeze(self, reason: str) -> int:
        """No actor begins another round; returns the number of rounds that the furthest actor has begun."""
        self.reason = self.reason or reason
        self._frozen = True
        return max(self._begun.values(), default=0)

    def decide(self, end: int) -> None:
        """The run ends after ``end`` rounds, counted from the start of this process."""
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
    """The last round of a run that stops before ``following``."""
    epoch = following.epoch if last is None else last.epoch
    tested = following.phase not in ("evaluate", "score")
    return Round("save" if saves else "end", following.step, epoch, tested=tested)
