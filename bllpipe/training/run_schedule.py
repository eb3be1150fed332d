"""The schedule of a run: the one list of rounds that every rank follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bllpipe.config import Config
from bllpipe.config.validation import check_warmup
from bllpipe.errors import ConfigError
from bllpipe.messages import Round


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
            for batch, first in enumerate(range(0, self.num_test, self.batch_size)):
                yield Round("evaluate", done, epoch, batch, min(self.batch_size, self.num_test - first))
            yield Round("score", done, epoch)
        if done == self.last_step or _is_multiple(done, self.save_every or 0):
            yield Round("end" if self.save_every is None else "save", done, epoch)


def _is_multiple(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
