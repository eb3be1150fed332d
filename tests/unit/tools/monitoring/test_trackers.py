"""TensorBoard, Weights & Biases (offline) and MLflow (a local database), each read back from its own files."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bllpipe.tools.monitoring import tracking
from tests.support.jobs import SMALL, in_this_process, metrics, summary
from tests.support.waiting import PATIENCE

SETTINGS = ("engine=sequential", *SMALL, "steps=10", "blocks=2", "checkpoint.every_steps=5")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries take their time on a busy machine."""
    monkeypatch.setattr(tracking, "LAST_SECONDS", PATIENCE)
    monkeypatch.setattr(tracking, "STOP_SECONDS", PATIENCE)


def interrupted_and_resumed(run: Path, tracker: str) -> None:
    in_this_process(run, *SETTINGS, f"log.to=[{tracker}]", "stop_at=5")
    in_this_process(run, *SETTINGS, f"log.to=[{tracker}]", options=("--resume", "auto"))


def losses(run: Path) -> list[tuple[int, Any]]:
    """Step and loss of the last block by the run itself."""
    lines = [each for each in metrics(run) if (each["actor"], each["phase"]) == ("block 1", "train")]
    return [(each["step"], pytest.approx(each["loss"], rel=1e-6)) for each in lines]


def test_tensorboard_shows_a_run_while_it_trains(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed; pip install '.[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "small"
    interrupted_and_resumed(run, "tensorboard")
    curves = EventAccumulator(str(run / "tensorboard" / "rank 1, block 1")).Reload()
    assert [(each.step, each.value) for each in curves.Scalars("train/loss")] == losses(run)
    assert [each.step for each in curves.Scalars("test/accuracy")] == [10]
    own = EventAccumulator(str(run / "tensorboard")).Reload()
    assert b"    feedback.lag: 1\n" in own.Tensors("config/text_summary")[-1].tensor_proto.string_val[0]
    assert own.Scalars("test_accuracy")[-1].value == pytest.approx(summary(run)["test_accuracy"])


def test_weights_and_biases_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed; pip install '.[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "small"
    interrupted_and_resumed(run, "wandb")
    records = [record for path in sorted(run.rglob("*.wandb")) for record in records_of(path)]
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert len({each.run_id for each in runs}) == 1
    assert {(each.project, each.display_name) for each in runs} == {("bllpipe", "small")}
    config = {each.key: each.value_json for each in runs[0].config.update}
    assert config["feedback.lag"] == "1"
    rows = [
        {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    key = "block 1/train/loss"
    assert [(int(row["step"]), float(row[key])) for row in rows if key in row] == losses(run)
    (digest,) = {
        item.value_json
        for record in records
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
        if item.key == "state_sha256" and summary(run)["state_sha256"] in item.value_json
    }
    assert digest


def records_of(path: Path) -> Iterator[Any]:
    """The records in a file of W&B, which has the form of a log of LevelDB: blocks of 32 KiB with pieces of records."""
    from wandb.proto import wandb_internal_pb2

    content, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if (room := 32768 - position % 32768) < 7:
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of SQLAlchemy
def test_mlflow_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(package, reason=f"{package} is not installed; pip install '.[mlflow]'")
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    run = tmp_path / "small"
    interrupted_and_resumed(run, "mlflow")
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("bllpipe")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("small", "FINISHED")
    assert found.data.params["feedback.lag"] == "1"
    assert found.data.tags["state_sha256"] == summary(run)["state_sha256"]
    assert found.data.metrics["test_accuracy"] == pytest.approx(summary(run)["test_accuracy"])
    history = client.get_metric_history(found.info.run_id, "block 1/train/loss")
    assert [(each.step, each.value) for each in history] == losses(run)
