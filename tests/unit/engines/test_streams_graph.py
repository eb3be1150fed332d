"""The wavefront as one graph, on a CPU that stands in for a GPU: its bits, its launches, its dependencies."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from bllpipe.config import Config, load_config
from bllpipe.distributed.cuda_streams import RingBuffer, RingLinks
from bllpipe.engines import Options, build, streams
from bllpipe.engines.streams_graph import WavefrontGraph, WavefrontStep
from bllpipe.errors import ConfigError, NonFiniteError
from bllpipe.learn import optimizer as learner
from bllpipe.learn.block import Block
from bllpipe.learn.cuda_graphs import CapturedStep, Graphs, wavefront_graphs
from bllpipe.training.instrument import guard
from tests.support import jobs
from tests.support.tape import TapeGraphs
from tests.support.watched_graphs import StreamTape, WatchedGraphs
from tests.support.watched_streams import RaceDetector, WatchedStream, WatchedStreams, on_watched
from tests.unit.engines.test_no_waiting import Asked, Methods, Operations

STEPS = 20
# with a test, a checkpoint and lines of metrics on the way
SMALL = (
    "engine=streams",
    "model.name=tests.support.networks.engines:quick",
    "blocks=3",
    "data.name=synthetic",
    "data.synthetic_images=64",
    "data.image_size=8",
    "data.batch_size=16",
    "data.augment.flip=true",
    f"steps={STEPS}",
    "log.every_steps=7",
    "evaluate.every_epochs=2",
    "checkpoint.every_steps=10",
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

    monkeypatch.setattr(build, "speed_up", prepared)


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


def in_turn(folder: Path, *settings: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """The same run, by the engine that is the reference for all others."""
    return jobs.in_this_process(folder, *SMALL, *settings, "engine=sequential", options=options)


@pytest.mark.parametrize(
    "settings",
    [
        ("optimizer.clip_norm=0.5", "schedule.name=cosine", "model.name=resnet18", "model.width=2"),
        ("optimizer.name=adamw", "feedback.update=sgd", "feedback.lag=3", "blocks=2"),
        ("precision.wire=bf16", "precision.compute=bf16", "objective.family=gaussian_learned", "blocks=1"),
        ("method=predsim", "feedback.lag=2", "feedback.update=fixed"),
    ],
    ids=" ".join,
)
def test_the_bits_are_those_of_sequential(tmp_path: Path, settings: tuple[str, ...]) -> None:
    twin, told = Twin(), [tmp_path / "turns", tmp_path / "whole"]
    expected, found = in_turn(told[0], *settings), twin.train(told[1], *settings)
    assert twin.graphs.launches, "some steps are one graph"
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
    first, second, third = Twin(), Twin(), Twin()
    first.train(tmp_path / "twice", "stop_at=9")
    assert second.train(tmp_path / "twice", resume="auto")["state_sha256"] == expected
    in_turn(tmp_path / "there", "stop_at=9")
    assert third.train(tmp_path / "there", resume="auto")["state_sha256"] == expected
    first.train(tmp_path / "back", "stop_at=9")
    back = in_turn(tmp_path / "back", options=("--resume", "auto"))
    assert back["state_sha256"] == expected
    assert all(twin.graphs.launches for twin in (first, second, third))


LONG = ("log.every_steps=100", "checkpoint.every_steps=0")
QUIET = (*LONG, "evaluate.every_epochs=0")


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
    # the first one in which the last of three blocks is at its fourth step, to the last one in which the first trains
    assert len(twin.graphs.launches) == len(range(5, STEPS))
    first, *others = before
    for clocks in others:
        moved = {name for name, number in clocks.items() if number != first[name]}
        assert moved == {"wavefront"}, "no block and no lane is told anything by itself"


def test_a_whole_tick_asks_the_device_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in front of the launch nor behind it; what is recorded is looked at by the tape."""
    asked, carry_out = Asked(), WavefrontGraph.run_round

    def noted(whole: WavefrontGraph, wave: WavefrontStep) -> bool:
        asked.round = wave[0][1]
        is_whole = carry_out(whole, wave)
        asked.round = None
        return is_whole

    monkeypatch.setattr(WavefrontGraph, "run_round", noted)
    twin = Twin()
    with Operations(asked), Methods(asked):
        twin.train(tmp_path, *QUIET)
    assert asked.found == [] and twin.graphs.launches


def test_a_loss_that_is_not_finite_is_found_at_the_next_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is by blocks that take turns, if they look as seldom as they do on a GPU."""
    monkeypatch.setattr(build, "guard", lambda actor, at_lines: guard(actor, at_lines=True))
    monkeypatch.setattr(learner, "rate_factor", lambda step, *schedule: 1e30 if step >= 8 else 1.0)
    settings = (*QUIET, "log.every_steps=12")
    with pytest.raises(NonFiniteError) as expected:
        streams.run(load_config(None, [*SMALL, *settings, "gpu.capture=false"]), Options(run_dir=str(tmp_path / "a")))
    twin = Twin()
    with pytest.raises(NonFiniteError, match=r"rank 0 \(block 0\), step 11: .* NaN") as found:
        twin.train(tmp_path / "b", *settings)
    assert str(found.value) == str(expected.value)
    assert len(twin.graphs.launches) == len(range(5, 12)), "steps that spoil the weights are made in graphs, too"


def test_a_line_of_metrics_takes_no_tick_out_of_the_graph(tmp_path: Path) -> None:
    twin, settings = Twin(), (*QUIET, "log.every_steps=2")
    in_turn(tmp_path / "turns", *settings)
    twin.train(tmp_path / "whole", *settings)
    assert lines(tmp_path / "whole") == lines(tmp_path / "turns") and len(twin.graphs.launches) == len(range(5, STEPS))


@pytest.mark.parametrize(
    "settings",
    [("precision.wire=bf16",), ("feedback.lag=2", "feedback.update=sgd", "evaluate.every_epochs=3", "blocks=2", *LONG)],
    ids=str,
)
def test_no_stream_touches_what_another_one_may_be_at(tmp_path: Path, settings: tuple[str, ...]) -> None:
    twin = Twin()
    with RaceDetector(twin.streams) as detector:
        twin.train(tmp_path, *settings)
    assert detector.races == []
    born_inside = [memory for memory in detector.crossed() if " in graph " in memory.born]
    assert born_inside, "outcomes are read behind the launch"
    assert all(memory.streams <= {memory.born, "wavefront"} for memory in born_inside), (
        "torch's allocator goes by streams"
    )
    assert len(twin.graphs.launches) > len(twin.graphs.tapes) > 1, "graphs are recorded and launched again"


def races_of(twin: Twin, folder: Path, *settings: str) -> list[str]:
    with RaceDetector(twin.streams) as detector:
        twin.train(folder, *settings)
    return list(detector.races)


def deaf(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``call``, in which nobody waits."""

    def called(*arguments: Any) -> Any:
        with monkeypatch.context() as inside:
            inside.setattr(WatchedStream, "wait", lambda self, event: None)
            return call(*arguments)

    return called


@pytest.mark.parametrize(
    "forgetful", [(RingBuffer, "take"), (WavefrontGraph, "_enter"), (WavefrontGraph, "_leave")], ids=str
)
def test_a_wait_that_is_missing_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: tuple[type, str]
) -> None:
    """In the graph, in front of it and behind it."""
    owner, name = forgetful
    monkeypatch.setattr(owner, name, deaf(getattr(owner, name), monkeypatch))
    assert races_of(Twin(), tmp_path, "steps=8") != []


def test_a_stream_that_does_not_wait_for_the_start_is_no_part_of_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WavefrontGraph, "_queue", deaf(WavefrontGraph._queue, monkeypatch))
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
    """Rings must forget those of the other side: on the way in, and on the way out."""
    settle = RingLinks.rebase_events
    for number, told in (
        (1, "lane 2 in graph 0 waits inside of a graph for an event from outside"),
        (2, "waits for an event of a graph, outside of it"),
    ):
        calls = count(1)

        def forgotten(wires: RingLinks, event: Any, calls: Any = calls, number: int = number) -> None:
            if next(calls) != number:
                settle(wires, event)

        monkeypatch.setattr(RingLinks, "rebase_events", forgotten)
        with pytest.raises(AssertionError, match=told):  # a step is traced right behind the first graph
            Twin().train(tmp_path / str(number), "trace.first_step=6", "trace.num_steps=1")


def test_what_cannot_be_captured_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(graphs: WatchedGraphs, compute: Callable[[], Any]) -> Any:
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("capturing stream has unjoined work")  # as torch says on the way out

    monkeypatch.setattr(WatchedGraphs, "record", refuse)
    told = "step of all 3 blocks could not be captured as one graph: operation not .*; use --set gpu.capture=blocks"
    with pytest.raises(ConfigError, match=told):
        Twin().train(tmp_path)


def test_traced_steps_are_queued_one_by_one(tmp_path: Path) -> None:
    twin = Twin()
    twin.train(tmp_path, *QUIET, "trace.first_step=10", "trace.num_steps=4")
    apart = len(range(10, 14 + 2))  # steps in which one of three columns is at a traced step
    assert len(twin.graphs.launches) == len(range(5, STEPS)) - apart
    assert any((tmp_path / "spans").iterdir())


def test_a_cpu_has_no_graphs() -> None:
    config = load_config(None, [*SMALL])
    assert wavefront_graphs(config, torch.device("cpu")) is None


def test_each_block_may_be_captured_for_itself() -> None:
    config = load_config(None, [*SMALL, "gpu.capture=blocks"])
    assert wavefront_graphs(config, torch.device("cuda")) is None
    with pytest.raises(ConfigError, match="gpu.capture is 'ticks'; expected true or false or blocks"):
        load_config(None, ["gpu.capture=ticks"])
