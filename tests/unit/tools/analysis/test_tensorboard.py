"""Event files, read back by TensorBoard's own reader."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from bllpipe import cli
from bllpipe.errors import ConfigError
from bllpipe.tools.analysis.tensorboard import EventFiles, Scalar, write_events
from tests.support.jobs import SMALL, in_this_process, metrics, summary
from tests.support.report_pages import line, made_by_hand

pytest.importorskip("tensorboard", reason="tensorboard is not installed; pip install '.[tensorboard]'")


def read(folder: Path) -> Any:
    """What TensorBoard finds in one folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "small"
    in_this_process(path, "engine=sequential", *SMALL, "steps=12", "blocks=2")
    return path


@pytest.fixture(scope="module")
def written(run: Path) -> Path:
    """The run, written twice: the second time in place of the first."""
    folder = run.parent / "events"
    for _ in range(2):
        assert cli.main(["report", str(run), "--tensorboard", str(folder)]) == 0
    return folder


def test_every_figure_of_every_actor_is_a_scalar(run: Path, written: Path) -> None:
    lines = [each for each in metrics(run) if each["actor"] == "block 1" and each["phase"] == "train"]
    found = read(written / "small" / "rank 1, block 1")
    for name in ("loss", "kl" if "kl" in lines[0] else "pred", "accuracy", "lr", "images_per_second"):
        values = [(each.step, each.value) for each in found.Scalars(f"train/{name}")]
        assert values == [(each["step"], pytest.approx(each[name], rel=1e-6)) for each in lines], name
    waits = [each.value for each in found.Scalars("waiting/alpha 0->1")]
    assert waits == [pytest.approx(each["waiting"]["alpha 0->1"]) for each in lines]


def test_tests_stand_beside_the_training(run: Path, written: Path) -> None:
    (accuracy,) = read(written / "small" / "rank 1, block 1").Scalars("test/accuracy")
    assert (accuracy.step, accuracy.value) == (12, pytest.approx(summary(run)["test_accuracy"]))


def test_every_actor_has_a_folder(written: Path) -> None:
    places = {path.name for path in (written / "small").iterdir() if path.is_dir()}
    assert places == {"rank 0, block 0", "rank 1, block 1", "rank 2, lane 0", "rank 2, lane 1"}


def test_config_and_machine_are_texts_and_the_outcome_belongs_to_hyperparameters(run: Path, written: Path) -> None:
    found = read(written / "small")
    (config,) = found.Tensors("config/text_summary")
    assert b"    feedback.lag: 1\n" in config.tensor_proto.string_val[0]
    (machine,) = found.Tensors("machine/text_summary")
    assert b"    torch: " in machine.tensor_proto.string_val[0]
    assert "_hparams_/session_start_info" in found.summary_metadata
    (accuracy,) = found.Scalars("test_accuracy")
    assert accuracy.value == pytest.approx(summary(run)["test_accuracy"])


def test_a_resumed_run_replaces_the_steps_that_it_does_again(tmp_path: Path) -> None:
    for start, steps in ((0, {5: 1.0, 10: 2.0}), (5, {10: 3.0, 15: 4.0})):
        files = EventFiles(tmp_path, start)
        for step, value in steps.items():
            files.add(Scalar("rank 0, block 0", "train/loss", step, value))
        files.close()
    found = read(tmp_path / "rank 0, block 0").Scalars("train/loss")
    assert [(each.step, each.value) for each in found] == [(5, 1.0), (10, 3.0), (15, 4.0)]


def test_what_is_damaged_or_not_finite_is_left_out(tmp_path: Path) -> None:
    lines = [line("train", 5, loss=float("nan"), accuracy=0.5), line("train", 10, loss=1.5)]
    run = made_by_hand(tmp_path / "a", lines=lines)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("garbage\n[1]\n")
    write_events([run], tmp_path / "events")
    found = read(tmp_path / "events" / "a" / "rank None, block 1")
    assert [(each.step, each.value) for each in found.Scalars("train/loss")] == [(10, 1.5)]


def test_without_tensorboard_one_is_told_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"not installed; use pip install 'bllpipe\[tensorboard\]', or leave out"):
        write_events([made_by_hand(tmp_path / "a")], tmp_path / "events")


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file cannot be written .*; name another --tensorboard"):
        write_events([made_by_hand(tmp_path / "a")], tmp_path / "file")
