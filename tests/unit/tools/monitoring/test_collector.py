"""What a rank tells, through prometheus-client's own registry and parser."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from bllpipe.messages import Round
from bllpipe.tools.monitoring.exporter import registry
from bllpipe.tools.monitoring.metrics import METRICS, SETTINGS, VERSIONS, Source
from tests.support.metric_samples import BYTES, SIZE, make_source, train, work

Told = dict[tuple[str, frozenset[tuple[str, str]]], float]
UNITS = ("_seconds", "_bytes", "_ratio", "_total", "_info")
BARE = {"step", "planned_steps", "epoch", "loss", "gradient_norm", "learning_rate", "queued_messages"}
BARE |= {"checkpoint_step", "checkpoint_interval_steps"}


def told(source: Source, labels: dict[str, str] | None = None) -> Told:
    """What a reader of the text gets: a value by name and labels."""
    text = generate_latest(registry(source, labels)).decode()
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(found: Told, name: str, **labels: str) -> float:
    return found[f"bllpipe_{name}", frozenset(labels.items())]


def names(found: Told) -> set[str]:
    return {name for name, _ in found}


def test_every_figure_of_a_block_that_has_trained_tested_and_saved(tmp_path: Path) -> None:
    source = make_source(tmp_path / "run", restarts=3)
    tested = [Round("evaluate", 4, 0, batch, SIZE) for batch in range(2)]
    work(source, *map(train, range(4)), *tested, Round("score", 4), Round("save", 4))
    with source.worker.saves.writing(4):
        pass
    found, actor = told(source), {"actor": "block 1"}
    assert names(found) == {metric.name for metric in METRICS}
    assert value(found, "step", **actor) == value(found, "steps_total", **actor) == 4
    assert value(found, "images_total", **actor) == 4 * SIZE
    assert value(found, "planned_steps") == 100 and value(found, "restarts_total") == 3
    for phase in ("train", "test"):
        assert value(found, "loss", **actor, phase=phase, term="kl") == 0.25
        assert value(found, "loss", **actor, phase=phase, term="pred") == 1.5
        assert value(found, "accuracy_ratio", **actor, phase=phase) == 0.5
        assert value(found, "alignment_ratio", **actor, phase=phase) == 0.5
    assert value(found, "learning_rate", **actor) == 0.125 and value(found, "gradient_norm", **actor) == 3
    assert value(found, "sent_bytes_total", **actor, edge="alpha 1->2") == 4 * BYTES
    assert value(found, "queued_messages", **actor, edge="alpha 0->1") == 2
    assert value(found, "queued_messages", **actor, edge="alpha 1->2") == 1
    assert value(found, "checkpoint_step") == 4 and value(found, "checkpoints_total") == 1
    assert value(found, "checkpoint_interval_steps") == 20 and value(found, "checkpoint_failures_total") == 0
    assert value(found, "resident_memory_bytes") > 10 * 2**20
    assert value(found, "run_info", **source.settings) == value(found, "build_info", **source.versions) == 1


def test_an_edge_that_only_brings_messages_has_sent_nothing(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    work(source, train(0))
    found = told(source)
    edges = {dict(labels)["edge"] for name, labels in found if name == "bllpipe_sent_bytes_total"}
    assert edges == {"alpha 1->2"}


def test_what_is_not_known_yet_is_not_told(tmp_path: Path) -> None:
    found = told(make_source(tmp_path))
    unknown = {"loss", "accuracy_ratio", "alignment_ratio", "gradient_norm", "learning_rate", "epoch"}
    assert not names(found) & {f"bllpipe_{name}" for name in unknown}
    assert not names(found) & {"bllpipe_checkpoint_timestamp_seconds", "bllpipe_checkpoint_duration_seconds"}
    assert value(found, "step", actor="block 1") == value(found, "steps_total", actor="block 1") == 0


def test_a_run_that_goes_on_counts_its_own_steps_and_knows_where_it_is(tmp_path: Path) -> None:
    source = make_source(tmp_path, start=40, resumed_from=1000.0)
    before = told(source)
    assert value(before, "step", actor="block 1") == value(before, "checkpoint_step") == 40
    assert value(before, "checkpoint_timestamp_seconds") == 1000.0
    work(source, train(40), train(41))
    found = told(source)
    assert (value(found, "step", actor="block 1"), value(found, "steps_total", actor="block 1")) == (41, 1)


def test_time_is_in_rounds_by_phase_and_waiting_by_edge(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    work(source, train(0), Round("evaluate", 1, 0, 0, SIZE))
    watch, found, actor = source.worker.actors[0].stopwatch, told(source), {"actor": "block 1"}
    assert value(found, "phase_seconds_total", **actor, phase="train") == watch.in_rounds > 0
    assert value(found, "phase_seconds_total", **actor, phase="evaluate") == watch.in_tests > 0
    for edge, seconds in watch.waiting.items():
        assert value(found, "waiting_seconds_total", **actor, edge=edge) == seconds > 0


def test_who_waits_now_says_how_long_already(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    port = source.worker.actors[0].stopwatch.ports[0]
    edge = {"actor": "block 1", "edge": port.meter.edge}
    assert value(told(source), "current_wait_seconds", **edge) == 0
    port.meter.began = time.perf_counter() - 7
    assert value(told(source), "current_wait_seconds", **edge) == pytest.approx(7, abs=1)
    port.meter.end()
    assert value(told(source), "current_wait_seconds", **edge) == 0


def test_the_last_progress_is_when_the_round_began(tmp_path: Path) -> None:
    source = make_source(tmp_path, began=1000.0)
    assert value(told(source), "last_progress_timestamp_seconds", actor="block 1") == 1000.0
    work(source, train(0))
    source.worker.actors[0].entered -= 30
    seconds = time.time() - value(told(source), "last_progress_timestamp_seconds", actor="block 1")
    assert seconds == pytest.approx(30, abs=1)


def test_a_share_of_a_checkpoint_that_cannot_be_written_is_a_failure_and_no_checkpoint(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    with pytest.raises(OSError, match="full"), source.worker.saves.writing(20):
        raise OSError("full")
    found = told(source)
    assert value(found, "checkpoint_failures_total") == 1 and value(found, "checkpoints_total") == 0
    assert value(found, "checkpoint_step") == 0 and value(found, "checkpoint_seconds_total") > 0


def test_no_tensor_is_read(tmp_path: Path) -> None:
    """Tensors on the meta device cannot be: whoever tried would get an error."""
    source = make_source(tmp_path)
    recorder = source.worker.actors[0].metrics
    recorder._train.terms = {"kl": torch.empty((), device="meta")}
    recorder._train.correct = torch.empty((), device="meta")
    recorder._train.images = 10
    with pytest.raises(RuntimeError, match="meta"):
        recorder._train.read()
    assert "bllpipe_step" in names(told(source))


def test_labels_on_top_are_on_every_figure(tmp_path: Path) -> None:
    source = make_source(tmp_path / "run")
    work(source, train(0), train(1))
    for _, labels in told(source, source.labels):
        assert {("run", "run"), ("rank", "1"), ("role", "block 1")} <= labels


def test_names_are_in_base_units_and_say_so() -> None:
    for metric in METRICS:
        name = metric.name.removeprefix("bllpipe_")
        assert re.fullmatch("[a-z]+(_[a-z]+)*", name) and metric.name != name
        assert name.endswith(UNITS) or name in BARE, f"{name} has no unit"
        assert name.endswith("_total") == (metric.kind == "counter")
        assert metric.doc.endswith(".")
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_what_an_info_tells_stands_in_the_order_of_its_labels(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    assert (tuple(source.settings), tuple(source.versions)) == (SETTINGS, VERSIONS)
