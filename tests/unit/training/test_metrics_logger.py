"""The books of one block: lines of metrics.jsonl, figures for the progress line, and the end of a run that diverges."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bllpipe.learn.block import Outcome
from bllpipe.messages import Round
from bllpipe.training.metrics_logger import MetricMeans, MetricsLogger
from bllpipe.training.run_directory import RunDirectory
from bllpipe.training.timing import Stopwatch
from tests.unit.engines.test_no_waiting import Asked, Methods, Operations


def outcome(kl: float, pred: float, correct: int, lr: float = 0.5) -> Outcome:
    return Outcome({"kl": torch.tensor(kl), "pred": torch.tensor(pred)}, torch.tensor(correct), lr)


class Books:
    """A recorder with the store and the directory it writes to."""

    def __init__(self, path: Path, log_every: int = 2) -> None:
        self.store, self.directory = dist.HashStore(), RunDirectory(path)
        place = {"rank": 1, "role": "block 1", "actor": "block 1"}
        store: Any = self.store
        self.metrics = MetricsLogger(place, self.directory, store, Stopwatch([], 0), log_every)

    def lines(self) -> list[dict[str, Any]]:
        path = self.directory.metrics
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def posted(self) -> dict[str, Any]:
        figures: dict[str, Any] = json.loads(self.store.get("progress/block 1"))
        return figures


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path)


def test_a_line_every_so_many_steps_with_means_over_the_images(books: Books) -> None:
    books.metrics.record(Round("train", 0, size=10), outcome(1.0, 2.0, 5))
    assert books.lines() == []
    books.metrics.record(Round("train", 1, size=30), outcome(3.0, 4.0, 15, lr=0.25))
    (line,) = books.lines()
    assert (line["phase"], line["step"], line["rank"], line["actor"]) == ("train", 2, 1, "block 1")
    assert (line["kl"], line["pred"], line["loss"]) == (2.5, 3.5, 6.0), "weighted with the sizes of the batches"
    assert (line["accuracy"], line["lr"]) == (0.5, 0.25)
    assert 10 * 2**20 < line["resident_bytes"] < 2**40


def test_a_closer_look_is_taken_at_the_last_batch_before_a_line_and_at_every_test_batch(books: Books) -> None:
    looks = []

    def watched(value: float) -> Outcome:
        def watch() -> dict[str, torch.Tensor]:
            looks.append(value)
            return {"alignment": torch.tensor(value)}

        return replace(outcome(1.0, 1.0, 5), watch=watch)

    for step, value in enumerate((0.1, 0.5)):
        books.metrics.record(Round("train", step, size=10), watched(value))
    for batch, size in enumerate((30, 10)):
        books.metrics.record(Round("evaluate", 2, batch=batch, size=size), watched(float(batch)))
    books.metrics.record(Round("score", 2), None)
    assert looks == [0.5, 0.0, 1.0]
    assert [line["alignment"] for line in books.lines()] == [0.5, 0.25]


def test_what_a_graph_writes_anew_in_every_step_is_counted_once_a_step(books: Books) -> None:
    hits = torch.tensor(0)
    for step, correct in enumerate((3, 5)):
        hits.fill_(correct)
        books.metrics.record(Round("train", step, size=10), replace(outcome(0.0, 0.0, 0), correct=hits))
    assert [line["accuracy"] for line in books.lines()] == [(3 + 5) / 20]


def test_the_device_is_asked_once_a_line(books: Books) -> None:
    asked = Asked()
    with Operations(asked), Methods(asked):
        for step in range(2):
            asked.round = entry = Round("train", step, size=10)
            watched = replace(outcome(1.0, 2.0, 5), watch=lambda: {"alignment": torch.tensor(0.5)})
            books.metrics.record(entry, watched)
    assert asked.found == [(1, "tolist")]


def test_every_line_is_looked_at_before_it_is_written(books: Books) -> None:
    def refuse(terms: Mapping[str, float]) -> None:
        raise ValueError(f"{terms}")

    books.metrics.look = refuse
    books.metrics.record(Round("train", 0, size=10), outcome(float("inf"), 2.0, 5))
    with pytest.raises(ValueError, match=r"{'kl': inf, 'pred': 2.0}"):
        books.metrics.record(Round("train", 1, size=10), outcome(1.0, 2.0, 5))
    books.metrics.record(Round("evaluate", 2, size=10), outcome(3.0, 2.0, 5))
    with pytest.raises(ValueError, match=r"{'kl': 3.0, 'pred': 2.0}"):
        books.metrics.record(Round("score", 2), None)
    assert books.lines() == []


def test_every_line_starts_anew(books: Books) -> None:
    for step in range(4):
        books.metrics.record(Round("train", step, size=10), outcome(float(step), 0.0, step))
    assert [(line["step"], line["kl"]) for line in books.lines()] == [(2, 0.5), (4, 2.5)]


def test_a_test_is_scored_over_all_its_batches(books: Books) -> None:
    books.metrics.record(Round("evaluate", 7, batch=0, size=30), outcome(1.0, 1.0, 30))
    books.metrics.record(Round("evaluate", 7, batch=1, size=10), outcome(5.0, 1.0, 0))
    assert books.metrics.accuracy is None
    books.metrics.record(Round("score", 7, epoch=3), None)
    (line,) = books.lines()
    assert (line["phase"], line["step"], line["epoch"]) == ("evaluate", 7, 3)
    assert (line["accuracy"], line["kl"]) == (0.75, 2.0)
    assert books.metrics.accuracy == 0.75


def test_the_hits_of_all_heads_together_have_a_figure_of_their_own(books: Books) -> None:
    for size, together in ((30, 24), (10, 1)):
        one = replace(outcome(1.0, 1.0, 5), ensemble_correct=torch.tensor(together))
        books.metrics.record(Round("evaluate", 7, size=size), one)
    books.metrics.record(Round("score", 7), None)
    (line,) = books.lines()
    assert (line["accuracy"], line["ensemble_accuracy"]) == (0.25, 0.625)
    assert (books.metrics.accuracy, books.metrics.ensemble_accuracy) == (0.25, 0.625)
    books.metrics.record(Round("evaluate", 8, size=10), outcome(1.0, 1.0, 5))
    books.metrics.record(Round("score", 8), None)
    assert "ensemble_accuracy" not in books.lines()[-1], "each test is counted by itself"
    assert books.metrics.ensemble_accuracy is None


def test_whoever_asks_gets_the_means_of_the_last_line_and_of_the_last_test(books: Books) -> None:
    assert (books.metrics.trained, books.metrics.tested) == (None, None)
    for step in range(3):
        books.metrics.record(Round("train", step, size=10), outcome(1.0 + step, 2.0, 5))
    books.metrics.record(Round("evaluate", 3, size=10), outcome(5.0, 1.0, 9))
    assert books.metrics.tested is None, "the test is not over"
    books.metrics.record(Round("score", 3), None)
    assert books.metrics.trained == MetricMeans({"kl": 1.5, "pred": 2.0}, {}, 0.5, lr=0.5)
    assert books.metrics.tested == MetricMeans({"kl": 5.0, "pred": 1.0}, {}, 0.9, lr=0.5)


def test_the_progress_line_gets_the_latest_of_every_figure(books: Books) -> None:
    for step in range(2):
        books.metrics.record(Round("train", step, size=10), outcome(1.0, 1.0, 5))
    books.metrics.record(Round("evaluate", 2, size=10), outcome(1.0, 1.0, 9))
    books.metrics.record(Round("score", 2), None)
    figures = books.posted()
    assert (figures["loss"], figures["test_accuracy"], figures["step"]) == (2.0, 0.9, 2)


def test_a_lane_has_lines_without_losses(books: Books) -> None:
    for step in range(2):
        books.metrics.record(Round("train", step, size=10), None)
    books.metrics.record(Round("score", 2), None)
    (line,) = books.lines()
    assert "loss" not in line and line["waiting"] == {}


def test_the_sums_since_the_last_line_survive_a_checkpoint(tmp_path: Path) -> None:
    before, after, straight = (Books(tmp_path / name, log_every=4) for name in ("before", "after", "straight"))
    for books in (before, straight):
        for step in range(2):
            books.metrics.record(Round("train", step, size=10), outcome(0.1 * step, 0.7, 3))
    taken = after.metrics.load({**before.metrics.state(), "books.block 2.correct": torch.tensor(1)})
    assert taken == before.metrics.state().keys()
    for books in (after, straight):
        books.directory.path.mkdir()
        for step in range(2, 4):
            books.metrics.record(Round("train", step, size=30), outcome(0.3 * step, 0.2, 5))
    wanted, found = straight.lines()[0], after.lines()[0]
    assert [found[name] for name in ("kl", "pred", "loss", "accuracy")] == [
        wanted[name] for name in ("kl", "pred", "loss", "accuracy")
    ]
    assert after.metrics.state() == {}
