"""The metrics of a block or lane: its lines in metrics.jsonl, and its latest values for the progress display."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bllpipe.learn.block import Outcome
from bllpipe.messages import Round, Store
from bllpipe.training.run_directory import RunDirectory
from bllpipe.training.timing import Stopwatch
from bllpipe.utils.process import resident_bytes

POST_SECONDS = 0.5
TERM = "terms."


@dataclass(frozen=True)
class MetricMeans:
    """Means over the images of some batches: of the terms of the loss, of the diagnostics of the batches that have
    them, of the hits, and of the hits of the ensemble if it is evaluated; and the learning rate of the last batch."""

    terms: Mapping[str, float]
    diagnostics: Mapping[str, float]
    accuracy: float
    lr: float = 0.0
    ensemble_accuracy: float | None = None

    def to_json(self) -> dict[str, float]:
        """Without the learning rate, which a test does not have; ``loss`` is the sum of the terms."""
        ensemble = {} if self.ensemble_accuracy is None else {"ensemble_accuracy": self.ensemble_accuracy}
        loss = {"loss": sum(self.terms.values())}
        return {**self.terms, **loss, **self.diagnostics, "accuracy": self.accuracy, **ensemble}


@dataclass
class MetricSums:
    """Sums over the batches since the last line; tensors stay on their device until they are read."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    correct: Tensor | None = None
    ensemble_correct: Tensor | None = None  # only in tests, so no checkpoint holds it
    images: int = 0
    watched: int = 0
    lr: float = 0.0

    def add(self, outcome: Outcome, images: int) -> None:
        _add(self.terms, outcome.terms, images)
        hits = outcome.correct  # cloned: a CUDA graph writes the hits of the next step to the same memory
        self.correct = hits.clone() if self.correct is None else self.correct.to(hits) + hits
        if (more := outcome.ensemble_correct) is not None:
            self.ensemble_correct = more.clone() if self.ensemble_correct is None else self.ensemble_correct + more
        self.images += images
        self.lr = outcome.lr

    def watch(self, outcome: Outcome, images: int) -> None:
        """Adds the diagnostics of a batch, which take longer to compute."""
        _add(self.diagnostics, outcome.watch(), images)
        self.watched += images

    def state(self) -> dict[str, Tensor]:
        """The sums. Diagnostics are computed with a line alone, so no checkpoint has any."""
        if self.correct is None:
            return {}
        terms = {f"{TERM}{name}": total for name, total in self.terms.items()}
        return {**terms, "correct": self.correct, "images": torch.tensor(self.images)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The sums of ``state``, if it has any."""
        if "images" in state:
            self.terms = {name.removeprefix(TERM): total for name, total in state.items() if name.startswith(TERM)}
            self.correct, self.images = state["correct"], int(state["images"])

    def read(self) -> MetricMeans:
        """The means of all added batches, with one read of the device."""
        assert self.correct is not None, "read after at least one batch"
        ensemble = None if self.ensemble_correct is None else float(self.ensemble_correct) / self.images
        totals = [*self.terms.values(), *self.diagnostics.values(), self.correct]
        *sums, correct = torch.stack([total.double() for total in totals]).tolist()  # which is exact
        terms, diagnostics = sums[: len(self.terms)], sums[len(self.terms) :]
        return MetricMeans(
            {name: total / self.images for name, total in zip(self.terms, terms, strict=True)},
            {name: total / self.watched for name, total in zip(self.diagnostics, diagnostics, strict=True)},
            correct / self.images,
            self.lr,
            ensemble,
        )


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor], images: int) -> None:
    for name, value in values.items():
        sums[name] = torch.add(sums[name].to(value), value, alpha=images) if name in sums else value * images


class MetricsLogger:
    """Logs the metrics of one block or lane; a replica that is not the first of its block ``writes`` none, as its
    metrics are those of the first, but its times go to a file of their own. ``trained`` and ``tested`` are the means of
    its last lines of each kind. ``look`` gets the terms of every line before the line is written."""

    def __init__(
        self,
        place: Mapping[str, Any],
        directory: RunDirectory,
        store: Store,
        stopwatch: Stopwatch,
        log_every: int,
        writes: bool = True,
    ) -> None:
        self.place, self.directory, self.store, self.stopwatch = place, directory, store, stopwatch
        self.log_every, self._writes = log_every, writes
        self.look: Callable[[Mapping[str, float]], None] = lambda terms: None
        self.trained: MetricMeans | None = None
        self.tested: MetricMeans | None = None
        self._train, self._test = MetricSums(), MetricSums()
        self._latest: dict[str, Any] = {}
        self._posted = 0.0

    def record(self, entry: Round, outcome: Outcome | None) -> None:
        """Records one round; ``outcome`` is None for lanes."""
        if entry.phase == "train":
            self._record_step(entry, outcome)
        elif entry.phase == "evaluate" and outcome is not None:
            self._test.add(outcome, entry.size)
            self._test.watch(outcome, entry.size)
        elif entry.phase == "score" and self._test.images:
            self.tested, self._test = self._test.read(), MetricSums()
            self.look(self.tested.terms)
            line = {"phase": "evaluate", "step": entry.step, "epoch": entry.epoch, **self.place}
            line["training_seconds"] = round(self.stopwatch.training.seconds, 3)
            self._write({**line, **self.tested.to_json()})
            self._post({"step": entry.step, "test_accuracy": self.tested.accuracy})

    def _record_step(self, entry: Round, outcome: Outcome | None) -> None:
        done = entry.step + 1
        has_line = done % self.log_every == 0
        if outcome is not None:
            self._train.add(outcome, entry.size)
            if has_line:
                self._train.watch(outcome, entry.size)
        if has_line:
            place = {"phase": "train", "step": done, "epoch": entry.epoch, **self.place}
            line: dict[str, Any] = {**place}
            if self._train.images:
                self.trained, self._train = self._train.read(), MetricSums()
                self.look(self.trained.terms)
                line |= {**self.trained.to_json(), "lr": self.trained.lr}
            times: dict[str, Any] = {"images_per_second": round(self.stopwatch.take_interval(), 2)}
            times["waiting"] = {edge: round(seconds, 4) for edge, seconds in self.stopwatch.waiting.items()}
            times["resident_bytes"] = resident_bytes()
            self._write(line | times)
            if not self._writes:
                self.directory.add_metrics({**place, **times}, of_replica=True)
            self._post(line | times)
        elif time.monotonic() - self._posted > POST_SECONDS:
            self._post({"step": done})

    def _write(self, line: dict[str, Any]) -> None:
        if self._writes:
            self.directory.add_metrics(line)

    def _post(self, latest: Mapping[str, Any]) -> None:
        """Posts the latest value of every metric, for the progress display."""
        self._posted = time.monotonic()
        self._latest |= latest
        self.store.set(f"progress/{self.place['actor']}", json.dumps(self._latest))

    @property
    def accuracy(self) -> float | None:
        """The accuracy of the last test."""
        return self.tested.accuracy if self.tested else None

    @property
    def ensemble_accuracy(self) -> float | None:
        """The accuracy of the ensemble in the last test: of the last block alone, with ``evaluate.ensemble``."""
        return self.tested.ensemble_accuracy if self.tested else None

    def state(self) -> dict[str, Tensor]:
        """The sums since the last line, which a checkpoint holds so that the next line does not change by a resume."""
        return {f"{self._prefix}{name}": value for name, value in self._train.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> set[str]:
        """Restores its tensors from ``state``; returns their names."""
        own = {key: value.clone() for key, value in state.items() if key.startswith(self._prefix)}
        self._train.load({key.removeprefix(self._prefix): value for key, value in own.items()})
        return set(own)

    @property
    def _prefix(self) -> str:
        return f"books.{self.place['actor']}."
