"""The wavefront as one graph, on a CPU that stands in for a GPU: its bits, its launches, its dependencies."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bllpipe.config import Config, load_config
from bllpipe.engines import Options, assembly, streams
from bllpipe.engines.gpu import graphs_of_ticks
from bllpipe.engines.whole_ticks import WholeTicks
from bllpipe.errors import ConfigError
from bllpipe.learn.block import Block
from bllpipe.learn.capture import CapturedStep, Graphs
from bllpipe.wire.ring import Ring
from tests.ranks import jobs
from tests.unit.engines.watched_graphs import StreamTape, WatchedGraphs
from tests.unit.engines.watched_streams import RaceDetector, WatchedStream, WatchedStreams, on_watched
from tests.unit.learn.tape import TapeGraphs

STEPS, LINE = 24, 8
# with a test, a checkpoint and lines of metrics on the way
SMALL = (
    "engine=streams",
    "model.width=2",
    "blocks=3",
    "data.name=synthetic",
    "data.synthetic_images=64",
    "data.image_size=8",
    "data.batch_size=16",
    "data.augment.flip=true",
    f"steps={STEPS}",
    f"log.every_steps={LINE}",
    "evaluate.every_epochs=3",
    "checkpoint.every_steps=12",
    "gpu.capture=true",
)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate lies on the device, and losses are looked at as often as a line is written."""

    def prepared(block: Block, config: Config) -> Block:
        block.learner.optimizer.keep_rate_on_device()
        if config.engine == "streams":
            CapturedStep(block, TapeGraphs())
        return block

    monkeypatch.setattr(assembly, "speed_up", prepared)


class Twin:
    """What engine ``streams`` finds in place of a GPU."""

    def __init__(self) -> None:
        self.streams = WatchedStreams()
        self.graphs = WatchedGraphs(self.streams)

    def open_graphs(self, config: Config, device: torch.device) -> Graphs:
        return self.graphs

    def train(self, folder: Path, *settings: str, resume: str = "never") -> dict[str, Any]:
        """A run; its summary."""
        config = load_config(None, [*SMALL, *settings])
        opened = partial(on_watched, streams=self.streams)
        assert streams.run(config, Options(resume, str(folder)), opened, self.open_graphs) == 0
        return jobs.summary(folder)


def in_turn(folder: Path, *settings: str) -> dict[str, Any]:
    """The same run, by the engine that is the reference for all others."""
    return jobs.in_this_process(folder, *SMALL, *settings, "engine=sequential")


@pytest.mark.parametrize(
    "settings",
    [
        ("optimizer.clip_norm=0.5", "schedule.name=cosine"),
        ("optimizer.name=adamw", "feedback.update=sgd", "feedback.lag=3", "blocks=2"),
        ("precision.wire=bf16", "precision.compute=bf16", "objective.family=gaussian_learned", "blocks=1"),
        ("method=predsim", "feedback.lag=2", "feedback.update=fixed"),
    ],
    ids=" ".join,
)
def test_the_bits_are_those_of_sequential(tmp_path: Path, settings: tuple[str, ...]) -> None:
    twin, told = Twin(), [tmp_path / "turns", tmp_path / "whole"]
    expected, found = in_turn(told[0], *settings), twin.train(told[1], *settings)
    assert twin.graphs.launches, "some ticks are one graph"
    for key in ("state_sha256", "test_accuracy", "block_accuracy", "parameters"):
        assert found[key] == expected[key]
    assert lines(told[1]) == lines(told[0])
    assert found["sent_bytes"] == expected["sent_bytes"]


def lines(folder: Path) -> list[str]:
    """What lines of metrics say of the training, whoever wrote them first."""
    kept = ("actor", "phase", "step", "loss", "kl", "pred", "accuracy", "alignment", "lr")
    return sorted(json.dumps({key: line[key] for key in kept if key in line}) for line in jobs.metrics(folder))


def test_a_run_that_was_ended_early_goes_on_in_either_engine(tmp_path: Path) -> None:
    """The second half begins with statistics that the checkpoint holds, and records graphs of its own."""
    expected = in_turn(tmp_path / "turns")["state_sha256"]
    for first, second in ((True, True), (True, False), (False, True)):
        folder = tmp_path / f"{first}-{second}"
        twin = Twin()
        if first:
            twin.train(folder, "stop_at=14")
            assert twin.graphs.launches
        else:
            in_turn(folder, "stop_at=14")
        if second:
            twin = Twin()
            assert twin.train(folder, resume="auto")["state_sha256"] == expected
            assert twin.graphs.launches
        else:
            resumed = jobs.in_this_process(folder, *SMALL, "engine=sequential", options=("--resume", "auto"))
            assert resumed["state_sha256"] == expected


QUIET = ("log.every_steps=100", "evaluate.every_epochs=0", "checkpoint.every_steps=0")


def test_a_steady_tick_is_one_launch_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin, before = Twin(), list[dict[str, int]]()
    launch = WatchedGraphs._launch

    def noted(graphs: WatchedGraphs, tape: StreamTape) -> None:
        before.append({stream.name: stream.clock.get(stream.name, 0) for stream in twin.streams.all})
        launch(graphs, tape)

    monkeypatch.setattr(WatchedGraphs, "_launch", noted)
    with RaceDetector(twin.streams):
        twin.train(tmp_path, *QUIET)
    assert len(twin.graphs.tapes) == 2, "one for each of the two slots of an edge"
    # the first tick in which the last of three blocks is at its fourth step, to the last one in which the first trains
    assert len(twin.graphs.launches) == len(range(5, STEPS))
    first, *others = before
    for clocks in others:
        moved = {name for name, number in clocks.items() if number != first[name]}
        assert moved == {"ticks"}, "no block and no lane is told anything by itself"
    around = [later["ticks"] - earlier["ticks"] for earlier, later in zip(others, others[1:], strict=False)]
    assert max(around) * 5 < min(tape.num_operations for tape in twin.graphs.tapes)


@pytest.mark.parametrize("settings", [(), ("feedback.lag=2", "feedback.update=sgd"), ("precision.wire=bf16",)], ids=str)
def test_no_stream_touches_what_another_one_may_be_at(tmp_path: Path, settings: tuple[str, ...]) -> None:
    assert races_of(tmp_path, *settings) == []


def races_of(folder: Path, *settings: str) -> list[str]:
    twin = Twin()
    with RaceDetector(twin.streams) as detector:
        twin.train(folder, *settings)
    assert len(twin.graphs.launches) > len(twin.graphs.tapes) > 1, "graphs are recorded and launched again"
    return list(detector.races)


def deaf(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``call``, in which nobody waits."""

    def called(*arguments: Any) -> Any:
        with monkeypatch.context() as inside:
            inside.setattr(WatchedStream, "wait", lambda self, event: None)
            return call(*arguments)

    return called


@pytest.mark.parametrize("forgetful", [(Ring, "take"), (WholeTicks, "_enter"), (WholeTicks, "_leave")], ids=str)
def test_a_wait_that_is_missing_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: tuple[type, str]
) -> None:
    """In the graph, in front of it and behind it."""
    owner, name = forgetful
    monkeypatch.setattr(owner, name, deaf(getattr(owner, name), monkeypatch))
    assert races_of(tmp_path) != []


def test_a_stream_that_does_not_wait_for_the_start_is_no_part_of_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WholeTicks, "_queue", deaf(WholeTicks._queue, monkeypatch))
    with pytest.raises(AssertionError, match="lane 2 works beside the recording"):
        Twin().train(tmp_path)


def test_a_stream_that_is_not_joined_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = WatchedStream.wait

    def without_join(stream: WatchedStream, event: Any) -> None:
        if not stream.name.startswith("graph"):
            wait(stream, event)

    monkeypatch.setattr(WatchedStream, "wait", without_join)
    twin = Twin()
    with RaceDetector(twin.streams), pytest.raises(AssertionError, match="is not joined to where"):
        twin.train(tmp_path)


def test_events_do_not_pass_between_inside_and_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings must forget those of the other side."""
    settle = streams.RingWires.settle
    calls: list[Any] = []

    def forgotten(number: int) -> Callable[..., None]:
        def settled(wires: Any, event: Any) -> None:
            calls.append(event)
            if len(calls) != number:
                settle(wires, event)

        return settled

    monkeypatch.setattr(streams.RingWires, "settle", forgotten(1))
    with pytest.raises(AssertionError, match="waits inside of a graph for an event from outside"):
        Twin().train(tmp_path / "in")
    calls.clear()
    monkeypatch.setattr(streams.RingWires, "settle", forgotten(2))
    with pytest.raises(AssertionError, match="waits .* for an event"):
        Twin().train(tmp_path / "out")


def test_what_cannot_be_captured_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(graphs: WatchedGraphs, compute: Callable[[], Any]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(WatchedGraphs, "record", refuse)
    told = "a tick of all 3 blocks could not be captured as one graph: operation not .*; use --set gpu.capture=blocks"
    with pytest.raises(ConfigError, match=told):
        Twin().train(tmp_path)


def test_traced_steps_are_queued_one_by_one(tmp_path: Path) -> None:
    twin = Twin()
    twin.train(tmp_path, *QUIET, "trace.first_step=10", "trace.num_steps=4")
    apart = len(range(10, 14 + 2))  # ticks in which one of three columns is at a traced step
    assert len(twin.graphs.launches) == len(range(5, STEPS)) - apart
    assert any((tmp_path / "spans").iterdir())


def test_a_cpu_has_no_graphs() -> None:
    config = load_config(None, [*SMALL])
    assert graphs_of_ticks(config, torch.device("cpu")) is None
