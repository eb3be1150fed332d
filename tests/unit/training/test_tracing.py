"""Spans: what is recorded and what is not, which file it goes to, and clocks that are made to agree."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from bllpipe.messages import Round
from bllpipe.training.instrument import trace_methods
from bllpipe.training.run_directory import RunDirectory
from bllpipe.training.tracing import TRIPS, Clock, SpanFile, Track, align_clock, machine_id, record, step_of
from tests.support import jobs

TINY = (*jobs.SMALL, "data.name=synthetic", "data.synthetic_images=128", "data.image_size=8", "steps=8")
BLOCK = ["forward", "send", "receive", "stats", "send", "loss", "backward", "update", "log", "log"]
LANE = ["receive", "absorb", "load", "target", "send", "log"]


class Worker:
    """Something with methods to trace, one of which calls the other."""

    def outer(self, value: int) -> int:
        return self.inner(value) + 1

    def inner(self, value: int) -> int:
        return value * 2


def track_in(step: int, window: range = range(10)) -> Track:
    track = Track("block 0", window)
    track.enter(Round("train", step, batch=step))
    return track


def kinds(track: Track) -> list[str]:
    return [span.kind for span in track.spans]


def test_a_span_has_kind_round_edge_and_times() -> None:
    track, worker = track_in(3), Worker()
    trace_methods(worker, {"inner": "receive"}, track, "alpha 0->1")
    before = time.perf_counter_ns()
    assert worker.inner(3) == 6
    (span,) = track.spans
    assert (span.kind, span.edge, span.entry) == ("receive", "alpha 0->1", Round("train", 3, batch=3))
    assert before <= span.start <= span.end <= time.perf_counter_ns()


def test_what_is_called_inside_of_a_span_is_a_part_of_it() -> None:
    track, worker = track_in(0), Worker()
    trace_methods(worker, {"outer": "forward", "inner": "loss", "absent": "update"}, track)
    assert worker.outer(3) == 7
    assert worker.inner(3) == 6
    assert kinds(track) == ["forward", "loss"]
    assert Worker().outer(3) == 7 and len(track.spans) == 2, "only the one instance is wrapped"


def test_an_error_ends_its_span_and_goes_on() -> None:
    track = track_in(0)
    with pytest.raises(ValueError, match="broken"), record(track, "forward"):
        raise ValueError("broken")
    with record(track, "backward"):
        pass
    assert kinds(track) == ["forward", "backward"]


@pytest.mark.parametrize(
    ("entry", "recorded"),
    [
        (Round("train", 4), False),
        (Round("train", 5), True),
        (Round("train", 6), True),
        (Round("train", 7), False),
        (Round("save", 5), False),
        (Round("evaluate", 7), True),
        (Round("save", 8), False),
    ],
)
def test_only_rounds_in_the_window_are_recorded(entry: Round, recorded: bool) -> None:
    track = Track("block 0", range(5, 7))
    track.enter(entry)
    with record(track, "save"):
        pass
    assert kinds(track) == ["save"] * recorded


def test_an_engine_names_step_and_microbatch_itself() -> None:
    track = Track("stage 1", range(5, 7))
    for step in (4, 5):
        for microbatch in (0, 1):
            with record(track, "forward", step, microbatch, "alpha 0->1"):
                pass
    assert [(span.entry.step, span.entry.batch, span.edge) for span in track.spans] == [
        (5, 0, "alpha 0->1"),
        (5, 1, "alpha 0->1"),
    ]


def test_without_a_track_nothing_is_recorded() -> None:
    with record(None, "forward", 3):
        pass
    fresh = Track("block 0", range(5))
    with record(fresh, "forward"):
        pass
    assert fresh.spans == []


def test_a_file_is_written_when_the_last_actor_is_behind_the_window(tmp_path: Path) -> None:
    tracks = [Track(f"lane {index}", range(2)) for index in range(2)]
    path = tmp_path / "spans" / "rank-4.jsonl"
    SpanFile(RunDirectory(tmp_path), {"rank": 4, "role": "feedback", **asdict(Clock(7, 2))}, tracks)
    for track in tracks:
        track.enter(Round("evaluate", 2, batch=1))
        with record(track, "load"):
            pass
    tracks[1].enter(Round("train", 2))
    assert not path.exists()
    tracks[0].enter(Round("train", 2))
    header, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert (header["rank"], header["role"], header["version"], header["unit"]) == (4, "feedback", 1, "ns")
    assert (header["clock_offset_ns"], header["clock_uncertainty_ns"]) == (7, 2)
    assert [(line["actor"], line["phase"], line["step"], line["batch"]) for line in lines] == [
        ("lane 0", "evaluate", 1, 1),
        ("lane 1", "evaluate", 1, 1),
    ]
    assert [file.name for file in path.parent.iterdir()] == ["rank-4.jsonl"]


def test_a_resumed_run_keeps_what_was_traced_before(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_spans("rank-0.jsonl", "before")
    track = Track("block 0", range(2))
    file = SpanFile(directory, {"rank": 0}, [track])
    track.enter(Round("train", 50))
    file.write()
    assert (tmp_path / "spans" / "rank-0.jsonl").read_text() == "before"


def test_tests_and_checkpoints_belong_to_the_step_before_them() -> None:
    assert [step_of(Round(phase, 5)) for phase in ("train", "evaluate", "score", "save")] == [5, 4, 4, 4]


def aligned(offset: int, machines: tuple[str, str]) -> tuple[Clock, Clock]:
    """The clocks of two ranks, a thread each; the second one's reads ``offset`` more."""
    store: Any = dist.HashStore()
    found: dict[int, Clock] = {}

    def rank(number: int) -> None:
        found[number] = align_clock(
            store, number, 2, machines[number], lambda: time.perf_counter_ns() + number * offset
        )

    threads = [threading.Thread(target=rank, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return found[0], found[1]


@pytest.mark.parametrize("offset", [5_000_000_000, -123_456_789_000, 0])
def test_the_offset_between_two_machines_is_found_within_what_is_promised(offset: int) -> None:
    first, second = aligned(offset, ("here", "there"))
    assert first == Clock(0, 0)
    assert abs(second.clock_offset_ns + offset) <= second.clock_uncertainty_ns
    assert 0 < second.clock_uncertainty_ns < 100_000_000


def test_one_machine_has_one_clock() -> None:
    assert aligned(5_000_000_000, ("here", "here")) == (Clock(), Clock())
    assert machine_id() == machine_id() != ""
    assert TRIPS >= 8


@pytest.fixture(scope="module", params=["sequential", "threads"])
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with the steps 2 to 5 traced, and state_sha256 of the same without a trace."""
    folder, engine = tmp_path_factory.mktemp(request.param), f"engine={request.param}"
    plain = jobs.in_this_process(folder / "plain", *TINY, engine)["state_sha256"]
    assert not (folder / "plain" / "spans").exists()
    jobs.in_this_process(folder / "run", *TINY, engine, "trace.first_step=2", "trace.num_steps=4")
    return folder / "run", str(plain)


def spans_of(run: Path, rank: int, phase: str = "train") -> dict[str, list[dict[str, Any]]]:
    """The spans of a rank by actor."""
    lines = [json.loads(line) for line in (run / "spans" / f"rank-{rank}.jsonl").read_text().splitlines()[1:]]
    actors = {line["actor"] for line in lines}
    return {
        actor: [line for line in lines if line["actor"] == actor and line["phase"] == phase] for actor in sorted(actors)
    }


def test_tracing_changes_no_bit(traced: tuple[Path, str]) -> None:
    run, plain = traced
    assert jobs.summary(run)["state_sha256"] == plain


def test_kinds_come_in_the_order_of_the_algorithm_and_none_is_missing(traced: tuple[Path, str]) -> None:
    first, inner, last, lanes = ["load", *BLOCK], ["receive", *BLOCK], ["receive", "forward", *BLOCK[2:]], LANE
    for rank, expected in enumerate([first, inner, inner, last, lanes]):
        found = spans_of(traced[0], rank)
        assert len(found) == (4 if rank == 4 else 1)
        for spans in found.values():
            assert [span["kind"] for span in spans] == expected * 4
            assert [span["step"] for span in spans] == [step for step in range(2, 6) for _ in expected]


def test_spans_do_not_overlap_and_cover_the_step(traced: tuple[Path, str]) -> None:
    for rank in range(5):
        for spans in spans_of(traced[0], rank).values():
            assert all(one["end"] <= two["start"] for one, two in pairwise(spans))
            # now and then another thread takes the processor between two spans; that it does so in every step is less
            # likely than that a span is missing
            assert min(uncovered(spans, step) for step in range(2, 6)) < 0.2


def uncovered(spans: list[dict[str, Any]], step: int) -> float:
    """The share of a step in no span."""
    mine = [span for span in spans if span["step"] == step]
    covered = sum(span["end"] - span["start"] for span in mine)
    return 1 - float(covered / (mine[-1]["end"] - mine[0]["start"]))


def test_tests_and_checkpoints_have_spans(tmp_path: Path) -> None:
    jobs.in_this_process(tmp_path, *TINY, "engine=sequential", "trace.first_step=7", "trace.num_steps=9")
    (block,) = spans_of(tmp_path, 1, "evaluate").values()
    assert [span["kind"] for span in block][:6] == ["receive", "evaluate", "send", "receive", "evaluate", "log"]
    assert {span["step"] for span in block} == {7}
    for rank in range(5):
        saves = [span for spans in spans_of(tmp_path, rank, "save").values() for span in spans]
        assert sum(span["kind"] == "save" for span in saves) == (4 if rank == 4 else 1)


def test_a_stopped_run_goes_on_with_another_trace(tmp_path: Path) -> None:
    settings = (*TINY, "engine=sequential")
    jobs.in_this_process(tmp_path, *settings, "stop_at=4")
    jobs.in_this_process(tmp_path, *settings, "trace.num_steps=6", options=("--resume", "auto"))
    (block,) = spans_of(tmp_path, 0).values()
    assert {span["step"] for span in block} == {4, 5}


def test_a_network_that_learns_end_to_end_has_spans_too(tmp_path: Path) -> None:
    jobs.in_this_process(tmp_path, *TINY, "engine=single", "method=bp", "trace.num_steps=2")
    (block,) = spans_of(tmp_path, 0).values()
    expected = ["load", "forward", "load", "stats", "loss", "backward", "update", "log", "log"]
    assert [span["kind"] for span in block] == expected * 2
