"""The wavefront: its order, its dependencies, its races on a CPU that stands in for a GPU, and its bits."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bllpipe.config import load_config
from bllpipe.distributed.cuda_streams import HostStreams, RingBuffer, RingLinks, streams_on
from bllpipe.engines import Options, streams
from bllpipe.engines.in_process import run_in_process, run_in_turn
from bllpipe.engines.job import Job
from bllpipe.engines.ports import ring_links
from bllpipe.engines.streams import make_columns, wavefront
from bllpipe.engines.streams_graph import StreamActor
from bllpipe.training.worker import Worker
from tests.support import jobs
from tests.support.watched_streams import RaceDetector, WatchedStream, WatchedStreams, on_watched

# small, and with everything that can lie between two steps: logs, tests and checkpoints
SMALL = (
    "model.name=tests.support.networks.engines:quick",
    "blocks=3",
    "data.name=synthetic",
    "data.synthetic_images=64",
    "data.image_size=8",
    "data.batch_size=16",
    "steps=6",
    "log.every_steps=2",
    "checkpoint.every_steps=3",
)


def orders(columns: int, entries: int) -> list[list[tuple[int, int]]]:
    return list(wavefront([iter(range(entries)) for _ in range(columns)]))


def test_in_tick_w_column_k_is_at_w_minus_k_and_the_rearmost_comes_first() -> None:
    assert orders(3, 3) == [[(0, 0)], [(1, 0), (0, 1)], [(2, 0), (1, 1), (0, 2)], [(2, 1), (1, 2)], [(2, 2)]]


@pytest.mark.parametrize(("columns", "entries"), [(1, 4), (4, 1), (4, 2), (4, 9), (3, 0)])
def test_every_entry_comes_once_and_when_what_it_needs_has_come(columns: int, entries: int) -> None:
    found = [each for wave in orders(columns, entries) for each in wave]
    when = {each: number for number, each in enumerate(found)}
    assert len(found) == columns * entries == len(when)
    for column, entry in found:
        for needed in ((column, entry - 1), (column - 1, entry)):
            assert when.get(needed, -1) < when[(column, entry)]
        if column + 1 < columns and entry:  # two slots: the reading of the one before the last is over
            assert when[(column + 1, entry - 1)] < when[(column, entry)]


def test_nothing_is_taken_from_a_column_before_its_tick() -> None:
    """A stop may come at any time: what is begun then is a wavefront step, which is carried out whole."""
    taken: list[tuple[int, int]] = []

    def column(number: int) -> Any:
        for entry in range(3):
            taken.append((number, entry))
            yield entry

    found = wavefront([column(number) for number in range(3)])
    assert next(found) == taken == [(0, 0)]
    assert next(found) == taken[1:] == [(1, 0), (0, 1)]


def engine(folder: Path, name: str, *settings: str) -> str:
    """state_sha256 of a run."""
    return str(jobs.in_this_process(folder, f"engine={name}", *SMALL, *settings)["state_sha256"])


@pytest.mark.parametrize(
    "settings",
    [
        ("method=bll",),
        ("method=dgl", "optimizer.name=adamw"),
        ("method=predsim", "blocks=2"),
        ("feedback.update=sgd", "feedback.lag=3", "evaluate.every_epochs=2"),
        ("precision.wire=bf16", "precision.compute=bf16", "optimizer.clip_norm=1.0"),
        ("blocks=1", "feedback.update=fixed"),
        ("blocks=8", "objective.family=gaussian_learned", "model.name=resnet18", "model.width=2"),
    ],
    ids=" ".join,
)
def test_the_bits_are_those_of_sequential(tmp_path: Path, settings: tuple[str, ...]) -> None:
    assert engine(tmp_path / "streams", "streams", *settings) == engine(
        tmp_path / "taking-turns", "sequential", *settings
    )


def test_a_run_that_was_ended_early_goes_on_in_either_engine(tmp_path: Path) -> None:
    straight = engine(tmp_path / "straight", "sequential")
    for first, second in (("streams", "streams"), ("streams", "sequential"), ("sequential", "streams")):
        folder = tmp_path / f"{first}-{second}"
        engine(folder, first, "stop_at=4")
        resumed = jobs.in_this_process(folder, f"engine={second}", *SMALL, options=("--resume", "auto"))
        assert resumed["state_sha256"] == straight


def test_the_lines_of_metrics_are_those_of_sequential(tmp_path: Path) -> None:
    def lines(name: str) -> Any:
        engine(tmp_path / name, name)
        kept = [
            {key: line[key] for key in ("actor", "phase", "step", "loss", "accuracy") if key in line}
            for line in jobs.metrics(tmp_path / name)
        ]
        return sorted(kept, key=str)

    assert lines("streams") == lines("sequential")


def in_random_order(seed: int, job: Job, parts: list[Worker], links: RingLinks) -> None:
    """Everything as soon as what it needs is done, in an order that nobody has thought of."""
    blocks, lanes = make_columns(job, parts, links.streams)
    rounds, draw, last = list(job.rounds()), random.Random(seed), len(blocks) - 1
    done = dict.fromkeys((*blocks, *lanes), 0)

    def is_ready(place: StreamActor) -> bool:
        number = done[place]
        if number == len(rounds):
            return False
        if place in lanes:
            return done[blocks[lanes.index(place)]] >= number
        k = blocks.index(place)
        return (
            done[lanes[k]] > number
            and (k == 0 or done[blocks[k - 1]] > number)
            and (k == last or done[blocks[k + 1]] >= number)
        )

    while ready := [place for place in done if is_ready(place)]:
        place = draw.choice(ready)
        place.run_round(rounds[done[place]])
        done[place] += 1
    assert set(done.values()) == {len(rounds)}, "nobody may be left waiting"


@pytest.mark.parametrize("seed", [0, 1])
def test_every_admissible_order_gives_the_same_bits(tmp_path: Path, seed: int) -> None:
    expected = engine(tmp_path / "taking-turns", "sequential")
    config = load_config(None, [*SMALL, "engine=streams"])
    run_in_process(
        config,
        Options(run_dir=str(tmp_path / "random")),
        partial(in_random_order, seed),
        partial(ring_links, streams_on),
    )
    assert jobs.summary(tmp_path / "random")["state_sha256"] == expected


def test_blocks_that_run_in_turn_may_use_rings_too(tmp_path: Path) -> None:
    """As they do on a GPU."""
    expected = engine(tmp_path / "channels", "sequential")
    config = load_config(None, [*SMALL, "engine=sequential"])
    run_in_process(config, Options(run_dir=str(tmp_path / "rings")), run_in_turn, partial(ring_links, streams_on))
    assert jobs.summary(tmp_path / "rings")["state_sha256"] == expected


def races_of(folder: Path, *settings: str) -> RaceDetector:
    """A run on streams that are watched."""
    watched = WatchedStreams()
    config = load_config(None, [*SMALL, "engine=streams", *settings])
    detector = RaceDetector(watched)
    with detector:
        assert streams.run(config, Options(run_dir=str(folder)), partial(on_watched, streams=watched)) == 0
    assert len(watched.all) == 1 + 2 * config.num_blocks
    assert {name for memory in detector.memory.values() for name in memory.streams} == {
        stream.name for stream in watched.all
    }, "every stream is seen at work"
    assert set(watched.now.clock) >= {stream.name for stream in watched.all}, "the end waits for all of them"
    return detector


@pytest.mark.parametrize(
    "settings",
    [("blocks=3",), ("blocks=2", "feedback.lag=2", "feedback.update=sgd"), ("blocks=2", "precision.wire=bf16")],
    ids=" ".join,
)
def test_no_stream_touches_what_another_one_may_be_at(tmp_path: Path, settings: tuple[str, ...]) -> None:
    detector = races_of(tmp_path, *settings)
    assert detector.races == []


def test_only_a_checkpoint_takes_memory_from_one_stream_to_another(tmp_path: Path) -> None:
    """The writer of the lanes' checkpoint waits for the device before that memory is used again."""
    crossed = races_of(tmp_path, "blocks=2").crossed()
    assert crossed, "the first lane's share is written on the stream of the last one"
    assert all(memory.streams <= {"lane 0", "lane 1"} for memory in crossed)


def without_full(monkeypatch: pytest.MonkeyPatch) -> None:
    _wait_only(monkeypatch, RingBuffer.take)


def without_free(monkeypatch: pytest.MonkeyPatch) -> None:
    _wait_only(monkeypatch, RingBuffer.fill)


def _wait_only(monkeypatch: pytest.MonkeyPatch, forgetful: Callable[..., Any]) -> None:
    """In ``forgetful`` nobody waits."""

    def call(*arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(WatchedStream, "wait", lambda self, event: None)
            return forgetful(*arguments)

    monkeypatch.setattr(RingBuffer, forgetful.__name__, call)


def without_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamActor, "wait_for", lambda self, others: None)


@pytest.mark.parametrize("forget", [without_full, without_free, without_lanes])
def test_a_wait_that_is_missing_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[pytest.MonkeyPatch], None]
) -> None:
    forget(monkeypatch)
    assert races_of(tmp_path, "blocks=2").races != []


def test_a_cpu_has_nothing_to_wait_for() -> None:
    found = streams_on(torch.device("cpu"))
    assert isinstance(found, HostStreams)
    assert found.open("block 0") is found.current()
    found.current().wait(found.current().record())
    found.current().record().synchronize()
    found.synchronize()
